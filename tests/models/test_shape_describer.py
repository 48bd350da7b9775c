"""The describer that ships: it says what it sees, and is steered like other models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.controls import AddBias, Edits, Forbid, ImageTokens, Region
from regard.controls.over_trust import decode_without_over_trust
from regard.core.errors import RegardError
from regard.models.shape_describer import answers, ask, load_describer
from regard.tasks.described_shapes import (
    SeenShape,
    caption,
    draw_scene,
    named_objects,
    noisy_picture,
    questions,
    told,
)

SCENE = [SeenShape("red", "ring", 0), SeenShape("blue", "cross", 5)]


@pytest.fixture(scope="module")
def describer() -> Any:
    return load_describer()


def pictures(scenes: Any = (SCENE,), noise: float = 0.0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(0)
    return torch.stack([noisy_picture(x, drawn, noise) for x in scenes])


def test_it_describes_and_answers(describer: Any) -> None:
    drawn = torch.Generator().manual_seed(1)
    scenes = [draw_scene(drawn) for _ in range(24)]
    said = answers(*describer, ask(describer[1], pictures(scenes)))
    found = [told(x, scene) for x, scene in zip(said, scenes, strict=True)]
    assert sum(x.made_up for x in found) < 0.25 * sum(x.named for x in found)
    assert sum(x.missed for x in found) < 0.25 * sum(x.there for x in found)
    asked = [questions(x, drawn)[1] for x in scenes]
    given = ask(describer[1], pictures(scenes), [q for q, _ in asked])
    said = answers(*describer, given, max_new_tokens=3)
    assert sum(a == b for (_, a), b in zip(asked, said, strict=True)) > 18


def test_captions_are_read_as_they_are_written() -> None:
    drawn = torch.Generator().manual_seed(0)
    for _ in range(20):
        scene = draw_scene(drawn, habit=0.6)
        said = caption(scene)
        assert named_objects(said) == [(x.color, x.shape) for x in scene]
        assert told(said, scene) == (len(scene), 0, 0, len(scene))
        assert told(said, []) == (len(scene), len(scene), 0, 0)
        for question, answer in questions(scene, drawn):
            if question.startswith("is there"):
                pair = tuple(question.split()[2:4])
                there = pair in {(x.color, x.shape) for x in scene}
                assert answer == ("yes ." if there else "no .")


@pytest.mark.parametrize("text", ["is there purple ring ?", ["describe :"] * 2])
def test_what_it_cannot_read_is_told(describer: Any, text: Any) -> None:
    with pytest.raises(RegardError, match="1 questions of the words"):
        ask(describer[1], pictures(), text)


def test_its_image_is_steered(describer: Any) -> None:
    """What no token may look at is not described: the object of a corner is left out."""
    model, tokenizer = describer
    given = ask(tokenizer, pictures())
    plain = answers(model, tokenizer, given)
    assert plain == [caption(SCENE)]
    # The encoder mixes patches, so the whole image is hidden, not a corner.
    with regard.steer(model, Edits(Forbid(ImageTokens())), check=False) as one:
        blind = answers(model, tokenizer, given)
    assert blind != plain
    before, after = one.receipt.mass()
    assert before > 0.05
    assert after == 0
    with regard.steer(model, Edits(AddBias(Region((0, 0, 0.34, 0.34)), 1.0)), check=False) as two:
        answers(model, tokenizer, given)
    before, after = two.receipt.mass()
    assert after > before
    assert answers(model, tokenizer, given) == plain


def test_over_trust_reads_pictures(describer: Any) -> None:
    """Without a fine it is greedy decoding of the same picture."""
    model, tokenizer = describer
    given = ask(tokenizer, pictures())
    images = given["input_ids"][0] == model.config.image_token_index
    found = decode_without_over_trust(
        model, given["input_ids"], tokens=20, strength=0.0, patience=10**6, images=images,
        end=tokenizer.eos_token_id, pixel_values=given["pixel_values"],
    )  # fmt: skip
    said = tokenizer.decode(found.ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said == answers(model, tokenizer, given)[0]
