"""A whole pipeline is steered: its words are found, its branches told, its pictures shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import regard
from regard import controls as c
from regard.controls import diffusion as d
from regard.controls.prompt import NotInPromptError
from regard.models.attach import attach
from tests.controls.painting_models import LEFT, RIGHT, Weights
from tests.models.test_pipelines import pipeline as pipeline  # a fixture
from tests.models.test_pipelines import told


def painted(pipe: Any, **more: Any) -> Any:
    return np.stack([np.asarray(x) for x in pipe(**told(**more)).images])


def test_words_of_the_prompt_are_found_in_their_branch(pipeline: Any) -> None:
    plain = painted(pipeline)
    control = d.BoundedAttention([d.Subject("red", LEFT), d.Subject("fox", RIGHT)])
    seen = Weights()
    with (
        regard.steer(pipeline, control, check=False) as one,
        attach(pipeline.unet, seen, check=False),
    ):
        changed = painted(pipeline)
    assert not np.array_equal(changed, plain)
    assert np.array_equal(painted(pipeline), plain)
    assert one.receipt.moved > 1e-4
    name = next(x for x in seen.found if x.endswith("attn2"))
    weights = seen.found[name]  # unconditional, then conditional; tokens: start, a, red, f, o, x
    rows, columns = seen.calls[name].forward.grid_of(weights.shape[2])
    left = [i for i in range(rows * columns) if (i % columns + 0.5) / columns < 0.5]
    assert bool((weights[1][:, left][..., [3, 4, 5]] == 0).all())
    assert bool((weights[1][:, left][..., 2] > 0).all())
    assert bool((weights[0][:, left][..., [3, 4, 5]] > 0).all())


def test_a_word_that_is_not_there_is_told_with_the_prompt(pipeline: Any) -> None:
    control = d.BoundedAttention([d.Subject("cat", LEFT)])
    with (
        pytest.raises(NotInPromptError, match="a red fox"),
        regard.steer(pipeline, control, check=False),
    ):
        painted(pipeline)


def test_several_pictures_of_several_prompts(pipeline: Any) -> None:
    """Words stand elsewhere in each prompt, and each has two pictures."""
    prompts = ["a red fox", "red fox a"]
    seen = Weights()
    control = c.Edits(c.Forbid("red"), where={"kinds": "cross", "branches": "conditional"})
    with (
        regard.steer(pipeline, control, check=False),
        attach(pipeline.unet, seen, check=False),
    ):
        pictures = painted(pipeline, prompt=prompts, num_images_per_prompt=2)
    assert len(pictures) == 4
    weights = next(x for n, x in seen.found.items() if n.endswith("attn2"))
    gone = (weights == 0).all(2).all(1).int()
    assert gone.argmax(1).tolist() == [0, 0, 0, 0, 2, 2, 1, 1]
    assert gone.sum(1).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_pictures_of_one_branch_read_each_other(pipeline: Any) -> None:
    plain = painted(pipeline, num_images_per_prompt=2)
    with regard.steer(pipeline, "storydiffusion", check=False) as one:
        shared = painted(pipeline, num_images_per_prompt=2)
    assert not np.array_equal(plain, shared)
    assert set(one.receipt.sets) == {"extra keys"}
    before, after = one.receipt.mass()
    assert before == 0.0
    assert 0.1 < after < 0.9
    with regard.steer(pipeline, "pag", check=False) as other:
        guided = painted(pipeline)
    assert not np.array_equal(guided, painted(pipeline))
    assert other.receipt.fired > 0
    assert np.array_equal(painted(pipeline, num_images_per_prompt=2), plain)
