"""Tiny models that paint, of the three kinds, and batches of pictures for them, with branches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.controls import Region
from regard.controls.context import EditContext
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.models.diffusers import branches
from regard.models.forward import Forward
from regard.models.site import Site
from regard.models.stage import Stage
from tests.diffusion import TEXT, build, flux, sd3, unet

MODELS = {"unet": unet, "sd3": sd3, "flux": flux}
each_model = pytest.mark.parametrize("kind", list(MODELS))
# Halves of a picture.
LEFT, RIGHT = Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))
NAMES = ("unconditional", "conditional", "conditional 2")
GRID = (4, 6)


def model_of(name: str) -> Any:
    """A model of a kind, with sharp attention."""
    torch.manual_seed(0)
    model, _ = build(MODELS[name])
    for path, parameter in model.named_parameters():
        if any(x in path for x in ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.")):
            parameter.data.mul_(3)
    return model


def inputs_of(name: str, rows: int, seed: int = 0, grid: tuple[int, int] = GRID) -> dict[str, Any]:
    """Inputs of a batch, on a grid that is not square."""
    g = torch.Generator().manual_seed(seed)
    high, wide = grid

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    text = {"encoder_hidden_states": noise(rows, TEXT, 16)}
    if name == "unet":
        return {**text, "sample": noise(rows, 4, high, wide)}
    text["pooled_projections"] = noise(rows, 16)
    if name == "sd3":
        return {**text, "hidden_states": noise(rows, 4, 2 * high, 2 * wide)}
    ids = torch.tensor([[0.0, y, x] for y in range(high) for x in range(wide)])
    return {**text, "hidden_states": noise(rows, high * wide, 4), "img_ids": ids,
            "txt_ids": torch.zeros(TEXT, 3)}  # fmt: skip


def same_picture(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same with the first row everywhere."""
    many = len(inputs["encoder_hidden_states"])
    return {n: x[:1].expand(many, *x.shape[1:]).clone() if len(x) == many and "ids" not in n else x
            for n, x in inputs.items()}  # fmt: skip


def rows_of(inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Some rows of a batch."""
    return {n: x if "ids" in n else x[rows] for n, x in inputs.items()}


@contextmanager
def told(many: int) -> Iterator[None]:
    """Tell so many branches; none for 1."""
    with branches(*NAMES[:many]) if many > 1 else nullcontext():
        yield


@torch.no_grad()
def paint(model: Any, inputs: dict[str, Any], many: int = 1, time: float = 7.0) -> Tensor:
    """One output of a model."""
    dtype = next(model.parameters()).dtype
    given = {n: x.to(dtype) if x.is_floating_point() and "ids" not in n else x
             for n, x in inputs.items()}  # fmt: skip
    with told(many):
        out: Tensor = model(**given, timestep=torch.tensor([time]), return_dict=False)[0]
    return out


class Weights(Stage):
    """Keeps the weights of every call, and the call."""

    want = ("weights",)

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}
        self.calls: dict[str, Any] = {}

    def see(self, call: Any, result: Any) -> None:
        self.found[call.site.module] = result.weights
        self.calls[call.site.module] = call


def a_call(kind: str, b: int = 2) -> tuple[Call, slice]:
    """A call as one of these models makes it, and where its picture is."""
    text = 0 if kind == "unet" else 5
    n = 24 + text
    order = {"unet": "image", "sd3": "image-text", "flux": "text-image"}[kind]
    forward = Forward(0, torch.tensor([7.0]), grid=GRID)
    site = Site(0, "joint" if text else "self", "a", 2, 2, 8, False, order)
    q, k, v = (torch.randn(b, 2, n, 8, dtype=torch.float64) for _ in range(3))
    start = text if order == "text-image" else 0
    return Call.of(2 * q, k, v, site=site, forward=forward), slice(start, start + 24)


def at_call(call: Call) -> EditContext:
    return EditContext(call, Prompt())
