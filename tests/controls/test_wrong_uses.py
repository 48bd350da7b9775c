"""Each wrong use is told in one sentence that names what was wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard import controls as c
from regard.controls.crops import best_crop, relative_map
from regard.controls.deep_thinking import think
from regard.controls.document_ranking import assemble, rerank, sort_documents
from regard.controls.hallucination import common_subspace, decode_truthfully, train_detector
from regard.controls.prompt import Prompt
from regard.controls.read_or_write import simultaneous
from regard.controls.steps_back import Contrast, decode_with_steps_back
from regard.controls.token_emphasis import streams
from regard.controls.weight_edits import Swap
from regard.core.errors import RegardError
from regard.models.loading import load
from tests.architectures import sharp_llama

IDS = torch.randint(5, 60, (1, 12), generator=torch.Generator().manual_seed(0))
ONE = c.TokenPositions((3,))


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp_llama(2)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load(None)[1]


def run(model: Any, control: Any, ids: torch.Tensor = IDS, **settings: Any) -> None:
    """Steer one forward."""
    with regard.steer(model, control, check=False, **settings):
        model(ids)


# What is done with (model, tokenizer), and words of what is said.
WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a control that is not known": (lambda m, t: run(m, "emphasiss"), "did you mean 'emphasis'"),
    "no control": (lambda m, t: run(m, 7), "a name, a control, or edits"),
    "no edits": (lambda m, t: run(m, []), "one or more edits"),
    "a setting that it has not": (
        lambda m, t: c.control("emphasis", which="a", power=2), "some of",
    ),
    "a swap with nothing": (lambda m, t: Swap(None, "b"), "a set of tokens"),  # type: ignore[arg-type]
    "nothing to emphasize": (lambda m, t: run(m, "emphasis"), "pass what is missing"),
    "a word without a tokenizer": (
        lambda m, t: run(m, "emphasis", which="Paris"), "pass regard.steer(..., tokenizer=",
    ),
    "a word that is not in the prompt": (
        lambda m, t: run(m, "emphasis", which="Paris", tokenizer=t), "words of the prompt",
    ),
    "a place of a word that is not there": (
        lambda m, t: Prompt(t("a b a", return_tensors="pt").input_ids, t)
        and c.Phrase("a", 5).find(Prompt(t("a b a", return_tensors="pt").input_ids, t)),
        "number 5, of 2 places",
    ),
    "an empty word": (lambda m, t: c.Phrase("  "), "a word or a phrase"),
    "markers that are not there": (
        lambda m, t: run(m, c.AddBias(c.TextBetween("<a>", "</a>")), tokenizer=t), "both markers",
    ),
    "a role without messages": (
        lambda m, t: run(m, c.AddBias(c.PromptPart("system")), tokenizer=t), "messages=[...]",
    ),
    "a message that the prompt does not hold": (
        lambda m, t: run(
            m, c.AddBias(c.PromptPart("system")), tokenizer=t,
            messages=[{"role": "system", "content": "Answer in rhymes."}],
        ),
        "in their order",
    ),
    "which of nothing": (lambda m, t: c.AddBias(3.5), "a set of tokens"),
    "an empty mask": (
        lambda m, t: c.TokenMask(torch.zeros(4, dtype=torch.bool)), "at least one token",
    ),
    "a mask of numbers": (lambda m, t: c.TokenMask(torch.ones(4)), "compare, do not count"),
    "a token behind the prompt": (lambda m, t: run(m, c.AddBias([40])), "tokens 0 to 11"),
    "a token by half": (lambda m, t: c.TokenPositions((1.5,)), "whole numbers"),
    "a mask of another batch": (
        lambda m, t: run(m, c.AddBias(c.TokenMask(torch.ones(5, 4, dtype=torch.bool)))), "rows",
    ),
    "a set joined with a word": (lambda m, t: ONE | "Paris", 'pass Phrase("Paris")'),
    "an image where there is none": (
        lambda m, t: run(m, c.AddBias(c.ImageTokens())), "a prompt with an image",
    ),
    "a region outside the picture": (
        lambda m, t: c.Region(box=(0, 0, 1.5, 1)), "inside the picture",
    ),
    "a region without area": (lambda m, t: c.Region(box=(0.5, 0, 0.5, 1)), "with some area"),
    "an empty region": (lambda m, t: c.Region(pixels=torch.zeros(4, 4)), "something in it"),
    "no region": (lambda m, t: c.Region(), "a box, or a mask"),
    "a region of text": (lambda m, t: run(m, c.AddBias(c.Region(box=(0, 0, 1, 1)))), "grid"),
    "a strength that is no number": (lambda m, t: c.AddBias(ONE, "much"), "a finite number"),
    "an infinite strength": (lambda m, t: c.AddBias(ONE, float("inf")), "a finite number"),
    "a share above one": (lambda m, t: c.SetShare(ONE, 1.5), "0 to 1"),
    "a power below zero": (lambda m, t: c.ShareToPower(ONE, -0.5), "0 to inf"),
    "more than all moved": (lambda m, t: c.MoveMass(ONE, None, 2.0), "0 to 1"),
    "a negative temperature": (lambda m, t: c.ScaleScores(-1.0), "0 to inf"),
    "mass moved to where it is": (
        lambda m, t: run(m, c.MoveMass(ONE, ONE, 0.5)), "keys that are not in the source",
    ),
    "one set made even": (lambda m, t: c.EvenOut((ONE,)), "at least 2"),
    "strengths of other rows": (
        lambda m, t: run(m, c.AddBias(ONE, c.PerRow((0.0, 1.0)))), "one for each of 1 rows",
    ),
    "no carriers": (lambda m, t: c.control("attention_transition", many=0), "from 1"),
    "shares beyond one": (
        lambda m, t: c.control("attention_transition", strength=torch.full((2, 4), 2.0)), "0 to 1",
    ),
    "no strengths": (lambda m, t: c.PerStep(()), "one or more finite numbers"),
    "a head that is not there": (
        lambda m, t: run(m, c.AddBias(ONE), where={"heads": [99]}), "heads 0 to",
    ),
    "a head of a layer that is not there": (
        lambda m, t: run(m, c.AddBias(ONE), where={"heads": [(9, 0)]}), "no site",
    ),
    "heads of two kinds": (
        lambda m, t: run(m, c.AddBias(ONE), where={"heads": [0, (1, 1)]}), "pairs (layer, head)",
    ),
    "a layer that is not there": (lambda m, t: run(m, c.AddBias(ONE), where=17), "no site"),
    "cross-attention where there is none": (
        lambda m, t: run(m, c.AddBias(ONE), where="cross"), "no site",
    ),
    "a choice of sites misspelt": (
        lambda m, t: run(m, c.AddBias(ONE), where={"layer": 1}), "did you mean 'layers'",
    ),
    "a choice by a function": (
        lambda m, t: run(m, c.AddBias(ONE), where=lambda site: True), "which can be saved",
    ),
    "a branch that is not told": (
        lambda m, t: run(m, c.AddBias(ONE), where={"branches": "conditional"}), "branch",
    ),
    "a phase that is none": (lambda m, t: run(m, c.AddBias(ONE), phase="later"), "one of"),
    "values in a phase": (
        lambda m, t: run(m, c.ScaleTensor("v", 2.0), phase="decoded"), "'both'",
    ),
    "half of a group of heads": (
        lambda m, t: run(m, c.ScaleTensor("v", 2.0), where={"heads": [0]}), "a group",
    ),
    "a part that is none": (lambda m, t: c.ScaleTensor("w", 2.0), "one of"),
    "a direction of another size": (
        lambda m, t: run(m, c.RemoveDirection("out", torch.ones(3))), "as out",
    ),
    "no direction": (lambda m, t: c.RemoveDirection("out", torch.zeros(8)), "not 0"),
    "extra keys of another size": (
        lambda m, t: run(m, c.ExtraKeys(c.GivenKeys(torch.ones(1, 9, 2, 3), torch.ones(1, 9, 2, 3)))
        ),
        "take keys of the same site",
    ),
    "keys without values": (lambda m, t: c.GivenKeys(torch.ones(1, 2, 3, 4), None), "one value"),
    "a way to measure that is none": (
        lambda m, t: run(m, c.AddBias(ONE), measure="much"), "'some', 'all' or 'none'",
    ),
    "no documents": (lambda m, t: rerank(m, "q", [], tokenizer=t), "one or more texts"),
    "documents in one text": (lambda m, t: sort_documents(m, "a", "q", tokenizer=t), "texts"),
    "no question": (lambda m, t: assemble(t, ["a"], ""), "ask something"),
    "rounds below zero": (
        lambda m, t: sort_documents(m, ["a"], "q", tokenizer=t, rounds=-1), "from 0",
    ),
    "no round": (lambda m, t: think(m, IDS, rounds=0), "from 1"),
    "a momentum of one": (lambda m, t: think(m, IDS, momentum=1.0), "below 1"),
    "ids in a list": (lambda m, t: think(m, [1, 2]), "ids [b, n]"),
    "a decoder that cannot translate": (
        lambda m, t: simultaneous(m, [IDS], start=[1], end=2), "an encoder-decoder",
    ),
    "no newest frame": (
        lambda m, t: simultaneous(m, [IDS], start=[1], end=2, newest=0), "at least 1 frame",
    ),
    "two rows decoded with steps back": (
        lambda m, t: decode_with_steps_back(
            m, IDS.expand(2, -1), tokens=2, go_back=lambda d, p: None
        ),
        "one row at a time",
    ),
    "a step back to nowhere": (
        lambda m, t: decode_with_steps_back(m, IDS, tokens=2, go_back=lambda d, p: 9), "a place 0",
    ),
    "a threshold above one": (
        lambda m, t: decode_truthfully(m, IDS, lambda d: 0.0, tokens=2, threshold=2), "0 to 1",
    ),
    "labels of one kind": (
        lambda m, t: train_detector(torch.ones(4, 2), torch.ones(4, dtype=torch.bool)), "both",
    ),
    "states of two sizes": (
        lambda m, t: common_subspace(torch.ones(4, 2), torch.ones(4, 3), 1), "of one size",
    ),
    "a second run of another size": (
        lambda m, t: Contrast(lambda ids: torch.ones(1, 2))(IDS, torch.ones(1, 3)), "next token",
    ),
    "maps of two sizes": (
        lambda m, t: relative_map(torch.ones(2, 2), torch.ones(3, 3)), "one layer",
    ),
    "a crop larger than the map": (lambda m, t: best_crop(torch.ones(2, 2), 5), "1 to 2 cells"),
    "streams of two encoders": (
        lambda m, t: streams(torch.ones(1, 4), torch.ones(1, 5)), "one size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_use_is_told(name: str, model: Any, tokenizer: Any) -> None:
    do, words = WRONG[name]
    with pytest.raises(RegardError) as told:
        do(model, tokenizer)
    said = str(told.value)
    assert words in said, said
    assert "\n" not in said
    assert "Fix" in said


def test_there_are_enough() -> None:
    assert len(WRONG) >= 60


def test_nothing_is_left_after_a_wrong_use(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        before = model(IDS).logits
        for do, _ in WRONG.values():
            with pytest.raises(RegardError):
                do(model, tokenizer)
        assert torch.equal(model(IDS).logits, before)
