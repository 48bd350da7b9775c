"""Which tiles of the query x key plane are empty, full or partial: never N x N.

Maps of few tiles are written out; large ones are kept as runs of tiles, where a support has them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.runs import Lines, Runs
from regard.core.value import Value, value
from regard.core.value_text import Show

if TYPE_CHECKING:
    from regard.core.support.base import Support

EMPTY, PARTIAL, FULL = 0, 1, 2
# Elements looked at together where a support cannot answer for a tile as a whole.
LOOK_AT_ONCE = 1 << 22
# Tiles up to which a map is written out; beyond it is kept as runs, where a support has them.
WRITTEN = 1 << 16

T = TypeVar("T")
Allows = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Grid:
    """The tiles of a plane: the positions in each, and the first and last of them.

    `b` [b, 1, 1, 1], `h` [h, 1, 1], `i` [t_q, size] and `j` [t_k, size]; a short last tile repeats
    its last position. Positions need not be in a row: folding lays tiles over a lattice.
    """

    b: Tensor
    h: Tensor
    i: Tensor
    j: Tensor

    @staticmethod
    def over(
        n_q: int, n_k: int, size: tuple[int, int], batch: int, heads: int, device: torch.device
    ) -> Grid:
        """Lay tiles of `size` over n_q x n_k positions in a row."""
        i, j = (
            tiled(torch.arange(n, device=device), s) for n, s in zip((n_q, n_k), size, strict=True)
        )
        return Grid.of(i, j, batch, heads)

    @staticmethod
    def of(i: Tensor, j: Tensor, batch: int, heads: int) -> Grid:
        """Build a grid of tiles of given positions, [t_q, size] and [t_k, size]."""
        b = torch.arange(batch, device=i.device).view(-1, 1, 1, 1)
        return Grid(b, torch.arange(heads, device=i.device).view(-1, 1, 1), i, j)

    @cached_property
    def i_lo(self) -> Tensor:
        """Smallest query position of each tile, [t_q, 1]."""
        return self.i.amin(1, keepdim=True)

    @cached_property
    def i_hi(self) -> Tensor:
        """Largest query position of each tile, [t_q, 1]."""
        return self.i.amax(1, keepdim=True)

    @cached_property
    def j_lo(self) -> Tensor:
        """Smallest key position of each tile, [t_k]."""
        return self.j.amin(1)

    @cached_property
    def j_hi(self) -> Tensor:
        """Largest key position of each tile, [t_k]."""
        return self.j.amax(1)

    def shift(self, offset: int) -> Grid:
        """Move the queries on by `offset`."""
        return Grid(self.b, self.h, self.i + offset, self.j) if offset else self

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[b, h, t_q, t_k]."""
        return len(self.b), len(self.h), len(self.i), len(self.j)

    def look_at_every_pair(self, allows: Allows) -> tuple[Tensor, Tensor]:
        """Answer `some` and `every` by asking for each pair, a few rows of tiles at a time."""
        some = torch.zeros(self.shape, dtype=torch.bool, device=self.b.device)
        every = torch.zeros_like(some)
        batch, heads, t_q, t_k = self.shape
        if some.numel() == 0:
            return some, every
        rows_at_once = max(1, LOOK_AT_ONCE // max(1, batch * heads * self.j.numel()))
        for t in range(t_q):
            any_met = torch.zeros(batch, heads, t_k, dtype=torch.bool, device=self.b.device)
            all_met = torch.ones_like(any_met)
            for i in self.i[t].split(rows_at_once):
                met = allows(self.b, self.h, i.view(-1, 1), self.j.view(-1))
                met = met.expand(batch, heads, len(i), -1).unflatten(-1, self.j.shape)
                any_met |= met.any(-1).any(2)
                all_met &= met.all(-1).all(2)
            some[:, :, t], every[:, :, t] = any_met, all_met
        return some, every


def tiled(positions: Tensor, size: int) -> Tensor:
    """Cut positions [n] into tiles [t, size], repeating the last one to fill up."""
    short = -len(positions) % size
    if short and len(positions):
        positions = torch.cat([positions, positions[-1:].expand(short)])
    return positions.view(-1, size)


@value
class TileMap(Value):
    """The state of each tile: `state` int8 [b, h, t_q, t_k] of EMPTY, PARTIAL, FULL.

    Empty and full are certain; a partial tile may turn out to be either.
    """

    state: Tensor
    size: tuple[int, int]
    n_q: int
    n_k: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[b, h, t_q, t_k]."""
        b, h, t_q, t_k = self.state.shape
        return b, h, t_q, t_k

    @property
    def density(self) -> float:
        """Share of the tiles that must be looked into."""
        tiles = prod(self.shape)
        return 1.0 - self.count(EMPTY) / tiles if tiles else 0.0

    def count(self, state: int) -> int:
        """Return how many tiles are in a state."""
        return int((self.state == state).sum())

    def most(self, state: int) -> int:
        """Return how many tiles are in a state, in the row of the batch and the head with most."""
        return int((self.state == state).sum((2, 3)).max())

    def _text(self, show: Show) -> str:
        b, h, t_q, t_k = self.shape
        lead = f"{b}x{h} of " if b * h > 1 else ""
        return (
            f"TileMap({lead}{t_q}x{t_k} tiles of {self.size[0]}x{self.size[1]}: "
            f"{self.count(EMPTY)} empty, {self.count(PARTIAL)} partial, {self.count(FULL)} full)"
        )


class RunMap(TileMap):
    """A tile map that is known by runs of tiles, and written out only where its state is asked for.

    >>> from regard.core.support import Causal, Window
    >>> (Causal() & Window(64)).tiles(1_000_000, 1_000_000, 64)
    TileMap(15625x15625 tiles of 64x64: 244109376 empty, 31249 partial, 0 full)
    """

    def __init__(self, runs: tuple[Runs, Runs], size: tuple[int, int], n_q: int, n_k: int) -> None:
        some, every = runs
        kept = {"some": some, "whole": some & every, "size": size, "n_q": n_q, "n_k": n_k}
        self.__dict__.update(kept, _derived={})

    some: Runs
    whole: Runs

    @cached_property
    def state(self) -> Tensor:
        """The state of each tile, int8 [1, 1, t_q, t_k]: O((n / tile)^2)."""
        t_q, t_k = self.shape[2:]
        device = self.some.start.device
        rows, columns = torch.arange(t_q, device=device), torch.arange(t_k, device=device)
        found = torch.zeros(t_q, t_k, dtype=torch.int8, device=device)
        for part in rows.split(max(1, LOOK_AT_ONCE // max(1, t_k))):
            for runs in (self.some, self.whole):
                found[part] += runs.holds(part, columns.expand(len(part), -1)).to(torch.int8)
        return found[None, None]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[1, 1, t_q, t_k]."""
        return 1, 1, -(-self.n_q // self.size[0]), -(-self.n_k // self.size[1])

    def count(self, state: int) -> int:
        """Return how many tiles are in a state."""
        rows = self.shape[2]
        some, whole = (
            int(x.length().sum()) * (rows if len(x.start) == 1 else 1)
            for x in (self.some, self.whole)
        )
        return {EMPTY: rows * self.shape[3] - some, PARTIAL: some - whole, FULL: whole}[state]

    def most(self, state: int) -> int:
        """Return how many tiles are in a state."""
        return self.count(state)

    def memo(self, key: Hashable, build: Callable[[], T]) -> T:
        """Build something derived from this map once."""
        kept = self.__dict__["_derived"]
        if key not in kept:
            kept[key] = build()
        return kept[key]  # type: ignore[no-any-return]


def map_tiles(
    support: Support,
    n_q: int,
    n_k: int,
    size: int | tuple[int, int],
    offset: int,
    device: torch.device | str | None,
) -> TileMap:
    """Build the tile map of a support; kept for supports without tensors."""
    both = (size, size) if isinstance(size, int) else size
    if not isinstance(both, tuple) or not all(isinstance(s, int) and s >= 1 for s in both):
        fail(ValueRangeError, "size", shape_of(size), "tile sizes of at least 1", "use 64 or 128")
    where = torch.device(device or "cpu")
    key = (n_q, n_k, both, offset, str(where))
    return support.memo(("tiles", *key), lambda: _mapped(support, *key))


def _mapped(
    support: Support, n_q: int, n_k: int, size: tuple[int, int], offset: int, device: str
) -> TileMap:
    batch, heads = support.extent()
    if batch * heads == 1 and -(-n_q // size[0]) * -(-n_k // size[1]) > WRITTEN:
        lines = Lines.over(n_q, n_k, size, offset, torch.device(device))
        runs = support.runs(lines)
        if runs is not None:
            return RunMap(runs, size, n_q, n_k)
    grid = Grid.over(n_q, n_k, size, batch, heads, torch.device(device)).shift(offset)
    return TileMap(tile_states(support, grid), size, n_q, n_k)


def tile_states(support: Support, grid: Grid) -> Tensor:
    """State of each tile of any grid, int8 [b, h, t_q, t_k]."""
    if 0 in grid.shape:
        return torch.zeros(grid.shape, dtype=torch.int8, device=grid.b.device)
    some, every = support.cover(grid)
    return (some.to(torch.int8) + (some & every).to(torch.int8)).expand(grid.shape)
