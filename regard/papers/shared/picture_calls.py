"""Calls of models that paint: pictures in a batch, with text where both share one attention."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit, apply
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.models.forward import Forward
from regard.models.site import Site
from regard.run.runner import run

GRID, TOKENS, TEXT = (4, 6), 24, 5
# The left half of the grid.
LEFT = (torch.arange(TOKENS) % GRID[1]) < GRID[1] // 2


def pictures(b: int, kind: str = "self", step: int = 0) -> Call:
    """Random attention of so many pictures: "self", "joint" (text behind it) or "cross"."""
    n = TOKENS + (TEXT if kind == "joint" else 0)
    m = TEXT if kind == "cross" else n
    site = Site(0, kind, "attn", 2, 2, 8, False, "image-text" if kind == "joint" else None)
    q, k, v = (torch.randn(b, 2, x, 8, dtype=torch.float64) for x in (n, m, m))
    now = Forward(step, torch.tensor([7.0]), grid=GRID)
    return Call.of(2 * q, k, v, site=site, forward=now)


def alike(call: Call) -> Call:
    """Return the call with the first picture everywhere."""
    q, k, v = (x[:1].expand(call.b, -1, -1, -1) for x in (call.q, call.k, call.v))
    return call.replace(q=q, k=k, v=v)


def with_edits(call: Call, edits: tuple[AttentionEdit, ...]) -> tuple[Tensor, Tensor]:
    """Return the output [b, h, n, e], and the weights [b, h, n, m], under some edits."""
    new, _ = apply(edits, EditContext(call, Prompt()))
    found = run(new, ("weights",))
    assert found.weights is not None
    return found.out, found.weights


__all__ = ["GRID", "LEFT", "TEXT", "TOKENS", "alike", "pictures", "with_edits"]
