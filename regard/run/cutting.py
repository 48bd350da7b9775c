"""A support cut into tiles: which tiles of keys each tile of queries attends to.

Where tokens lie on a lattice, or are of kinds, a support asks for an order in which neighbors, or
kinds, are together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.runs import Lines, Runs
from regard.core.support.base import Support
from regard.core.tilemap import FULL, PARTIAL, WRITTEN, Grid, tile_states
from regard.run.tile_lists import TileLists

# The sides of tiles, of queries and of keys, where a support asks for no others.
SIZE = (64, 32)


def tile_size(support: Support) -> tuple[int, int]:
    """Choose the sides of the tiles for a support."""
    return support.tile_size() or SIZE


@dataclass(frozen=True)
class Cut:
    """A support cut into tiles, for all rows and heads at once.

    `i`, `j` [t, side] are the positions in each tile; `states` int8 [b or 1, h or 1, t_q, t_k] are
    those of each of the `parts` that must all allow a pair.
    """

    size: tuple[int, int]
    orders: tuple[Tensor | None, Tensor | None]
    i: Tensor
    j: Tensor
    parts: tuple[Support, ...]
    states: tuple[Tensor, ...] = ()
    # Where the support has runs: those of some pair, and for each part those of every pair.
    some: Runs | None = None
    whole: tuple[Runs, ...] = ()

    def met(self, batch: int, head: int) -> TileLists:
        """List the tiles that meet, for one row of the batch and one head."""
        if self.some is not None:
            keys, counts = self.some.listed(len(self.i))
            keys = keys.clamp(max=len(self.j) - 1)
            rows = torch.arange(len(self.i), device=keys.device)
            full = reduce(and_, self.whole).holds(rows, keys)
            return TileLists(counts, keys, torch.where(full, FULL, PARTIAL).to(torch.int8))
        return TileLists.of(torch.stack(self._at(batch, head)).amin(0))

    def _at(self, batch: int, head: int) -> list[Tensor]:
        return [x[min(batch, len(x) - 1), min(head, x.shape[1] - 1)] for x in self.states]

    def asked(self, batch: int, head: int, units: Tensor, keys: Tensor, real: Tensor) -> list[bool]:
        """Return for each part whether it masks a pair of tiles keys [u, c] of units [u]."""
        if self.some is not None:
            full = [whole.holds(units, keys) for whole in self.whole]
        else:
            full = [x[units[:, None], keys] == FULL for x in self._at(batch, head)]
        return [not bool(x[real].all()) for x in full]


def cut(call: Call) -> Cut:
    """Cut the support of a call; calls of one shape share it."""
    key = ("cut", call.n, call.m, call.rule.offset, str(call.q.device))
    return call.rule.support.memo(key, lambda: _cut(call))


def _cut(call: Call) -> Cut:
    support, device = call.rule.support, call.q.device
    size = tile_size(support)
    orders = tuple(
        support.order(n, side, device) for n, side in zip((call.n, call.m), size, strict=True)
    )
    i, j = (
        _tiles(n, side, order, device)
        for n, side, order in zip((call.n, call.m), size, orders, strict=True)
    )
    if support.tensors():
        support = support.to(device)
    parts = support.conjuncts
    runs = None
    if orders == (None, None) and support.extent() == (1, 1) and len(i) * len(j) > WRITTEN:
        runs = [p.runs(Lines.over(call.n, call.m, size, call.rule.offset, device)) for p in parts]
    if runs is not None and None not in runs:
        some, whole = zip(*(x for x in runs if x is not None), strict=True)
        return Cut(size, (None, None), i, j, parts, some=reduce(and_, some), whole=whole)
    states = tuple(
        tile_states(part, Grid.of(i, j, *part.extent()).shift(call.rule.offset)) for part in parts
    )
    return Cut(size, (orders[0], orders[1]), i, j, parts, states)


def _tiles(n: int, size: int, order: Tensor | None, device: torch.device) -> Tensor:
    """Positions of each tile, [t, size]; the last ones are filled up with the last position."""
    position = torch.arange(n, device=device) if order is None else order
    short = -n % size
    return torch.cat([position, position[-1:].expand(short)]).view(-1, size)
