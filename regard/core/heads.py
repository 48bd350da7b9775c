"""The one place where grouped-query heads are expanded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def expand_heads(x: Tensor, h: int) -> Tensor:
    """Repeat key heads [b, g, ...] until there is one for each of h query heads.

    Query heads h // g in a row share a key head.

    >>> expand_heads(torch.tensor([[1, 2]]), 4).tolist()
    [[1, 1, 2, 2]]
    """
    return x if x.shape[1] == h else x.repeat_interleave(h // x.shape[1], dim=1)


def key_heads_of(heads: Sequence[int], h: int, g: int) -> list[int]:
    """Give the key head of each of some query heads.

    >>> key_heads_of([0, 3], h=4, g=2)
    [0, 1]
    """
    return [head // (h // g) for head in heads]


def gate_heads(out: Tensor, gate: Tensor) -> Tensor:
    """Scale each head's output [b, h, n, e] by a gate [h], [b, h] or [b, h, n].

    Head experts, head masks, head scaling and head knockouts are this.

    >>> gate_heads(torch.ones(1, 2, 1, 1), torch.tensor([0.0, 2.0])).flatten().tolist()
    [0.0, 2.0]
    """
    if gate.dim() == 1:
        gate = gate[None]
    return out * gate.reshape(*gate.shape, *(1,) * (out.dim() - gate.dim())).to(out.dtype)


def gather_heads(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Take some heads of x [b, h, ...]; a view where they stand in a row."""
    first, count = heads[0], len(heads)
    if list(heads) == list(range(first, first + count)):
        return x[:, first : first + count]
    return x.index_select(1, torch.tensor(heads, device=x.device))
