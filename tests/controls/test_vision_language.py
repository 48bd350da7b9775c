"""Controls of language on a model that sees act where the prompt's tokens are, nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard import controls as c
from regard.controls.vision_heads import vision_heads
from regard.controls.visual_sinks import VisualSinks, massive_channels
from regard.models.shape_describer import answers, ask, load_describer
from regard.tasks.described_shapes import draw_scene, noisy_picture

IMAGE = c.ImageTokens()
CONTROLS = {
    "a bias": c.Edits(c.AddBias(IMAGE, 1.0)),
    "forbidden": c.Edits(c.Forbid(IMAGE)),
    "mass": c.Edits(c.MoveMass(IMAGE, None, 0.5)),
    "a region": c.Edits(c.AddBias(c.Region(box=(0, 0, 0.5, 0.5)), 1.0)),
    "a word": c.control("emphasis", which="describe", strength=2.0),
    "louder heads": c.control("vision_heads", where={"heads": [(1, 0)]}),
    "carriers": c.control("attention_transition", many=8, strength=0.5, phase="both"),
    "outputs": c.Edits(c.ScaleTensor("out", 1.2)),
}


@pytest.fixture(scope="module")
def describer() -> Any:
    return load_describer()


@pytest.fixture(scope="module")
def given(describer: Any) -> Any:
    drawn = torch.Generator().manual_seed(0)
    pictures = torch.stack([noisy_picture(draw_scene(drawn), drawn) for _ in range(2)])
    return ask(describer[1], pictures)


@pytest.mark.parametrize("name", list(CONTROLS))
def test_they_act_in_the_language_model_alone(name: str, describer: Any, given: Any) -> None:
    model, tokenizer = describer
    control = CONTROLS[name]
    with regard.steer(model, control, tokenizer=tokenizer, check=False) as one, torch.no_grad():
        steered = model(**given).logits
    assert one.receipt.fired > 0
    assert {x.site.module.split(".")[1] for x in one.receipt.calls} == {"language_model"}
    with regard.steer(model, control, tokenizer=tokenizer, check=False) as two:
        answers(model, tokenizer, given, max_new_tokens=3)
    assert {x.site.module.split(".")[1] for x in two.receipt.calls} == {"language_model"}
    with torch.no_grad():
        assert not torch.equal(steered, model(**given).logits)


def test_what_names_the_encoder_acts_there(describer: Any, given: Any) -> None:
    model, _ = describer
    control = c.Edits(c.ScaleTensor("out", 1.5), where={"names": "*vision_tower*"})
    with regard.steer(model, control, check=False) as one, torch.no_grad():
        model(**given)
    assert {x.site.module.split(".")[1] for x in one.receipt.calls} == {"vision_tower"}


def test_heads_that_see_are_found(describer: Any, given: Any) -> None:
    """They are heads of the language model; its text without the image is the other run."""
    model, tokenizer = describer
    text = tokenizer(["<start> describe :"] * 2, return_tensors="pt")
    found = vision_heads(model, given, {k: text[k] for k in ("input_ids", "attention_mask")})
    assert set(found.divergence) == set(range(4))
    assert 4 <= len(found.heads) <= 12
    with regard.steer(model, "vision_heads", where={"heads": found.heads}, check=False) as one:
        answers(model, tokenizer, given, max_new_tokens=3)
    assert one.receipt.moved > 1e-3


def test_sinks_of_the_image_are_found(describer: Any, given: Any) -> None:
    model, tokenizer = describer
    with torch.no_grad():
        hidden = model(**given, output_hidden_states=True).hidden_states[2]
    control = VisualSinks(massive_channels(hidden), above=2.0, least=0.0, most=1.0)
    with regard.steer(model, control, check=False) as one:
        answers(model, tokenizer, given, max_new_tokens=3)
    assert one.receipt.fired > 0
    assert one.receipt.moved > 1e-4
