"""The painter that ships: it knows its words, and its pipeline is steered like others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("safetensors")

import regard
from regard.controls import Region
from regard.controls import diffusion as d
from regard.controls.prompt import NotInPromptError
from regard.core.errors import RegardError
from regard.models.diffusers import branches
from regard.models.shape_painter import load_painter
from regard.tasks.colored_shapes import describe, draw_shapes, found, ink, picture

PROMPT = [("red", "square"), ("blue", "ring")]


@pytest.fixture(scope="module")
def painter() -> Any:
    return load_painter()


def painted(painter: Any, prompt: Any = PROMPT, many: int = 2, **more: Any) -> torch.Tensor:
    made: torch.Tensor = painter(
        [describe(prompt)] * many, generator=torch.Generator().manual_seed(0), **more
    ).images
    return made


def test_named_colors_are_painted(painter: Any) -> None:
    marks = ink(painted(painter, many=4)).sum((2, 3))
    assert bool((marks[:, [0, 2]] > 4).all())
    assert bool((marks[:, [1, 3]] < 4).all())


@pytest.mark.parametrize("prompt", ["a purple ring", "red " * 9])
def test_what_it_cannot_read_is_told(painter: Any, prompt: str) -> None:
    with pytest.raises(RegardError, match="at most 8 of the words"):
        painter(prompt)


def test_what_is_drawn_is_found() -> None:
    drawn = torch.Generator().manual_seed(1)
    for many in (1, 2, 3):
        shapes = draw_shapes(many, drawn)
        asked = [(x.color, x.shape) for x in shapes]
        assert bool(found(picture(shapes)[None], asked).all())
        assert len({x.color for x in shapes}) == many


def test_words_of_its_prompt_are_steered(painter: Any) -> None:
    plain = painted(painter)
    subjects = [
        d.Subject("red square", Region(box=(0, 0, 1, 0.5))),
        d.Subject("blue ring", Region(box=(0, 0.5, 1, 1))),
    ]
    with regard.steer(painter, d.BoundedAttention(subjects), check=False) as one:
        apart = painted(painter)
    assert not torch.equal(plain, apart)
    assert one.receipt.moved > 1e-3
    assert torch.equal(painted(painter), plain)
    missing = d.AttendAndExcite(["cross"])
    with (
        pytest.raises(NotInPromptError, match="red square and blue ring"),
        regard.steer(painter, missing, check=False),
    ):
        painted(painter)


def test_a_pipeline_is_led_as_a_loop_of_ones_own_is(painter: Any) -> None:
    """The model reads the new latent, and the scheduler steps from it."""
    steps, strength, words = 4, 0.2, [2, 5]
    control = d.AttendAndExcite(words, strength, rounds=2, sharpen=10.0)
    with regard.steer(painter, control, check=False) as one:
        led = painted(painter, num_inference_steps=steps)
    assert 1 <= one.receipt.fired <= steps // 2
    assert one.receipt.moved > 1e-4

    import diffusers

    net, texts = painter.transformer, [describe(PROMPT)] * 2
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    states = [painter.words(painter.tokenizer.padded(x)) for x in (["", ""], texts)]
    pooled = torch.zeros(2, 8)
    z = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for step, t in enumerate(scheduler.timesteps):
        given = {"encoder_hidden_states": states[1], "pooled_projections": pooled,
                 "timestep": t.expand(2)}  # fmt: skip
        z = d.attend_and_excite(
            net, z, given, words, step=step, steps=steps, strength=strength, rounds=2, sharpen=10.0
        ).latents
        with torch.no_grad(), branches("unconditional", "conditional"):
            a, b = net(
                hidden_states=torch.cat((z, z)), timestep=t.expand(4),
                encoder_hidden_states=torch.cat(states),
                pooled_projections=torch.cat((pooled, pooled)), return_dict=False,
            )[0].chunk(2)  # fmt: skip
        z = scheduler.step(a + 3.0 * (b - a), t, z).prev_sample
    assert torch.allclose(led, z, atol=1e-4), (led - z).abs().max()
