"""The one place where grouped-query heads are expanded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# Rows from which bags are worth their setting up.
MANY = 256


def expand_heads(x: Tensor, h: int) -> Tensor:
    """Repeat key heads [b, g, ...] until there is one for each of h query heads.

    Query heads h // g in a row share a key head.

    >>> expand_heads(torch.tensor([[1, 2]]), 4).tolist()
    [[1, 1, 2, 2]]
    """
    return x if x.shape[1] == h else x.repeat_interleave(h // x.shape[1], dim=1)


def key_heads_of(heads: Sequence[int], h: int, g: int) -> list[int]:
    """Return the key head of each of some query heads.

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
    """Select some heads of x [b, h, ...]; a view if they are contiguous."""
    first, count = heads[0], len(heads)
    if list(heads) == list(range(first, first + count)):
        return x[:, first : first + count]
    return x.index_select(1, torch.tensor(heads, device=x.device))


def take_batch(x: Tensor, rows: Tensor) -> Tensor:
    """Select rows of the batch from x [b, ...], on whatever device their numbers are.

    >>> take_batch(torch.tensor([[1], [2]]), torch.tensor([1, 1])).tolist()
    [[2], [2]]
    """
    return x.index_select(0, rows.to(x.device))


def take_keys(x: Tensor, index: Tensor) -> Tensor:
    """Gather keys index [b, g, c] of x [b, g, m, d], row by row: [b, g, c, d].

    Whole rows are copied, which is many times as fast as gathering them entry by entry.

    >>> take_keys(torch.arange(6.0).view(1, 1, 3, 2), torch.tensor([[[2, 0]]])).tolist()
    [[[[4.0, 5.0], [0.0, 1.0]]]]
    """
    rows = None if x.requires_grad else as_rows(x)
    if rows is None:
        return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[3]))
    return take_rows(rows, rows_of(x, index)).view(*index.shape, x.shape[3])


def take_both(k: Tensor, v: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Gather keys index [b, g, c] of k [b, g, m, d] and of v [b, g, m, e], as `take_keys` does.

    >>> k, v = torch.arange(6.0).view(2, 1, 1, 3, 1)
    >>> [x.item() for x in take_both(k, v, torch.tensor([[[2]]]))]
    [2.0, 5.0]
    """
    alike = k.stride() == v.stride() and not (k.requires_grad or v.requires_grad)
    rows, others = (as_rows(k), as_rows(v)) if alike else (None, None)
    if rows is None or others is None:
        return take_keys(k, index), take_keys(v, index)
    at = rows_of(k, index)  # one table for both
    one, two = take_rows(rows, at), take_rows(others, at)
    return one.view(*index.shape, k.shape[3]), two.view(*index.shape, v.shape[3])


def as_rows(x: Tensor) -> Tensor | None:
    """Return the keys x [b, g, m, d] of all heads as rows [r, d]; None where they do not lie so."""
    b, g, m, d = x.shape
    over_b, over_g, over_m, over_d = x.stride()
    if over_d != 1 or m == 0 or over_m <= 0 or over_b % over_m or over_g % over_m:
        return None
    last = ((b - 1) * over_b + (g - 1) * over_g) // over_m + m
    return x.as_strided((last, d), (over_m, 1), x.storage_offset())


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Return which of the rows of `as_rows(x)` keys index [b, g, c] are, [b g c]."""
    b, g = x.shape[:2]
    if b * g == 1:
        return index.flatten()
    over_b, over_g, over_m = x.stride()[:3]
    first = torch.arange(b, device=x.device)[:, None] * (over_b // over_m)
    first = first + torch.arange(g, device=x.device) * (over_g // over_m)
    return (index + first[..., None]).flatten()


def take_rows(rows: Tensor, at: Tensor) -> Tensor:
    """Select some rows of many."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or len(at) < MANY:
        return rows.index_select(0, at)
    # Bags of one row each fetch ahead, which index_select does not.
    return embedding_bag(at, rows, torch.arange(len(at)), mode="sum")
