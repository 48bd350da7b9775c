"""Tiles of a prompt: squares of queries and keys, counted from position 0."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.policies.budget import Budget


def tile_places(call: Call, block: int) -> tuple[Tensor, Tensor]:
    """Number the tiles of queries and of keys, counted from position 0."""
    first = call.rule.offset // block
    cols = torch.arange(-(-call.m // block), device=call.q.device)
    return cols[first:], cols


def causal_tiles(call: Call, block: int) -> Tensor:
    """Return which tiles hold a causal pair, bool [1, 1, t_q, t_k]."""
    rows, cols = tile_places(call, block)
    return (cols <= rows[:, None])[None, None]


def density(budget: Budget, token_bytes: float, call: Call) -> float:
    """Return the share of the causal pairs of a prompt that a budget pays for."""
    if budget.share is not None:
        return budget.share
    tokens = int(budget.of_rows(torch.tensor([call.m]), token_bytes))
    return min(1.0, 2 * tokens / call.m)
