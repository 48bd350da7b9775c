"""Where a diffusion model's tokens are said to stand is where they stand: measured, not read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from regard.models import Stage, attach
from tests.diffusion import MAKERS, Made, build

JOINT = [m for m, kinds in MAKERS.items() if "joint" in kinds]
GRIDS = {"cogvideox": (2, 2, 3), "hunyuan": (2, 2, 3), "mochi": (2, 2, 3), "hidream": (2, 2)}
# Here the text moves all tokens, through the modulation; that of the image still tells the order.
MODULATED = {"mochi"}


class FirstJoint(Stage):
    """Keeps the keys of the first joint call, and where its tokens are said to stand."""

    def __init__(self) -> None:
        super().__init__("joint")
        self.k: Tensor | None = None
        self.text = self.image = slice(0)
        self.grid: Any = None

    def before(self, call: Any) -> Any:
        if self.k is None:
            self.k = call.k.clone()
            self.text, self.image = (
                call.site.span(x, call.m, call.forward) for x in ("text", "image")
            )
            self.grid = call.forward.grid
        return call


def first_joint(model: Any, inputs: dict[str, Any]) -> FirstJoint:
    time = "timesteps" if "HiDream" in type(model).__name__ else "timestep"
    stage = FirstJoint()
    with torch.no_grad(), attach(model, [stage]):
        model(**{time: torch.tensor([7.0])}, return_dict=False, **inputs)
    return stage


@pytest.mark.parametrize("make", JOINT, ids=lambda f: f.__name__)
def test_tokens_stand_where_they_are_said_to(make: Callable[..., Made], seed: int) -> None:
    model, inputs = build(make)
    plain = first_joint(model, inputs)
    assert plain.grid == GRIDS.get(make.__name__, (2, 3))

    def moved(part: str) -> set[int]:
        """Tokens whose keys move when the inputs of this part are others."""
        others = {
            n: torch.randn_like(x) if n.startswith(part) and x.is_floating_point() else x
            for n, x in inputs.items()
            if isinstance(x, Tensor)
        }
        others = {n: inputs[n] if n.endswith("mask") else x for n, x in others.items()}
        other = first_joint(model, {**inputs, **others})
        return set((other.k != plain.k).any(-1).any(1)[0].nonzero().flatten().tolist())

    everything = range(plain.k.shape[2])
    assert moved("hidden_states") == set(everything[plain.image])
    texts = moved("encoder_hidden_states")
    assert texts & set(everything[plain.text])
    if make.__name__ not in MODULATED:
        assert texts <= set(everything[plain.text])
    assert set(everything[plain.text]) | set(everything[plain.image]) == set(everything)
