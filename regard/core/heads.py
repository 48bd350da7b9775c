"""The one place where grouped-query heads are expanded."""

from __future__ import annotations

import math
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


class Room:
    """Memory that each use writes over: what a step needs, without asking the system anew.

    Fresh megabytes cost as much as reading them, where a process gives them back at each step.

    >>> room = Room()
    >>> room.take((2, 3), torch.ones(1)).shape, room.nbytes
    (torch.Size([2, 3]), 36)
    """

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Give a tensor of a shape, with the dtype and device of another; half as much is spare."""
        held, count = self._held, math.prod(shape)
        fits = held is not None and held.dtype == like.dtype and held.device == like.device
        if held is None or not fits or len(held) < count or held.is_inference():
            held = self._held = like.new_empty(count + count // 2)
        return held[:count].view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self._held is None else self._held.nbytes


def take_keys(x: Tensor, index: Tensor, room: Room | None = None) -> Tensor:
    """Take keys index [b, g, c] of x [b, g, m, d], row by row: [b, g, c, d].

    Whole rows are copied, which is many times as fast as gathering them entry by entry; with a
    `room` they are copied into it, where its next user writes.

    >>> take_keys(torch.arange(6.0).view(1, 1, 3, 2), torch.tensor([[[2, 0]]])).tolist()
    [[[[4.0, 5.0], [0.0, 1.0]]]]
    """
    b, g, m, d = x.shape
    over_b, over_g, over_m, over_d = x.stride()
    even = over_m > 0 and over_b % over_m == 0 and over_g % over_m == 0
    if over_d != 1 or not even or x.requires_grad or m == 0:
        return x.gather(2, index[..., None].expand(-1, -1, -1, d))
    last = ((b - 1) * over_b + (g - 1) * over_g) // over_m + m
    rows = x.as_strided((last, d), (over_m, 1), x.storage_offset())
    first = torch.arange(b, device=x.device)[:, None] * (over_b // over_m)
    first = first + torch.arange(g, device=x.device) * (over_g // over_m)
    at = (index + first[..., None]).flatten()
    if room is None:
        return rows.index_select(0, at).view(b, g, -1, d)
    made = room.take((len(at), d), x)
    torch.index_select(rows, 0, at, out=made)
    return made.view(b, g, -1, d)
