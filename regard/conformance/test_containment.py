"""The laws of containment: what must not matter may be anything, NaN and infinity included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.conformance.cases import Case, needs
from regard.core.errors import RegardError
from regard.layers.base import Layer

POISON = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "huge": 1e300}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def step(layer: Layer, inputs: dict[str, Tensor], counted: Tensor, **around: Any) -> list[Tensor]:
    """Run, and go backward from the counted outputs [b, n]: outputs there, and every gradient."""
    layer.zero_grad()
    given = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y = layer(**given, **around)[counted]
    torch.manual_seed(2)
    (y * torch.randn_like(y)).sum().backward()
    grads = [x.grad for x in (*given.values(), *layer.parameters()) if x.grad is not None]
    return [y.detach(), *(grad.clone() for grad in grads)]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Return whether two steps gave the same finite numbers, bit for bit."""
    pairs = list(zip(found, wanted, strict=True))
    return all(bool(a.isfinite().all()) and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("poison", POISON)
@needs("padding")
def test_padding_may_hold_anything(case: Case, poison: str) -> None:
    layer, inputs = case.make(), case.inputs()
    padded = "context" if case.mode == "cross" else "x"
    real = torch.ones(inputs[padded].shape[:2], dtype=torch.bool)
    real[0, -6:] = False
    if case.kind.can.left_padding:
        real[1, :3] = False
    counted = real if padded == "x" else torch.ones(inputs["x"].shape[:2], dtype=torch.bool)
    steps = []
    for value in (0.0, POISON[poison]):
        inputs[padded] = inputs[padded].masked_fill(~real[..., None], value)
        steps.append(step(layer, inputs, counted, padding=real))
    assert same(steps[1], steps[0])


@pytest.mark.parametrize("poison", POISON)
@needs("padding", "left_padding", "decode", modes=("causal",))
def test_padding_in_a_memory_may_hold_anything(case: Case, poison: str) -> None:
    layer, inputs = case.make(), case.inputs()
    real = torch.ones(2, case.tokens, dtype=torch.bool)
    real[1, :5] = False
    positions = (real.long().cumsum(1) - 1).clamp_min(0)
    found = []
    for value in (0.0, POISON[poison]):
        x = inputs["x"].masked_fill(~real[..., None], value)
        memory, pieces = layer.memory(), []
        for part in (slice(0, 3), slice(3, 12), slice(12, case.tokens)):
            with torch.no_grad():
                pieces.append(
                    layer(
                        x[:, part], memory=memory, padding=real[:, part],
                        positions=positions[:, part],
                    )
                )  # fmt: skip
        found.append(torch.cat(pieces, 1)[real])
    assert same(found[1:], found[:1])


def test_another_row_may_hold_anything(case: Case) -> None:
    """It is contained, or refused: a diverged row never passes into others without a word."""
    layer, inputs = case.make(), case.inputs()
    with torch.no_grad():
        wanted = layer(**inputs)[:1]
        for x in inputs.values():
            x[1] = float("nan")
        try:
            found = layer(**inputs)[:1]
        except RegardError as refused:
            found = wanted if "nan" in str(refused).lower() else torch.zeros(0)
    assert same([found], [wanted])
