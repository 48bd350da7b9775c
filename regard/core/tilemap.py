"""Which tiles of the query x key plane are empty, full or partial: O((n/tile)^2), never N x N."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.value import Value, value

if TYPE_CHECKING:
    from regard.core.support.base import Support

EMPTY, PARTIAL, FULL = 0, 1, 2
# Elements looked at together where a support cannot answer for a tile as a whole.
LOOK_AT_ONCE = 1 << 22

Allows = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Grid:
    """The tiles of a plane: first and last position of each, as tensors that broadcast.

    `b` [b, 1, 1, 1], `h` [h, 1, 1], `i_lo`, `i_hi` [t_q, 1], `j_lo`, `j_hi` [t_k]; ends inclusive.
    """

    b: Tensor
    h: Tensor
    i_lo: Tensor
    i_hi: Tensor
    j_lo: Tensor
    j_hi: Tensor

    @staticmethod
    def over(
        n_q: int, n_k: int, size: tuple[int, int], batch: int, heads: int, device: torch.device
    ) -> Grid:
        """Lay tiles of `size` over n_q x n_k; the last ones may be smaller."""
        i_lo = torch.arange(0, n_q, size[0], device=device).view(-1, 1)
        j_lo = torch.arange(0, n_k, size[1], device=device)
        return Grid(
            torch.arange(batch, device=device).view(-1, 1, 1, 1),
            torch.arange(heads, device=device).view(-1, 1, 1),
            i_lo,
            (i_lo + size[0] - 1).clamp(max=max(n_q - 1, 0)),
            j_lo,
            (j_lo + size[1] - 1).clamp(max=max(n_k - 1, 0)),
        )

    def shift(self, offset: int) -> Grid:
        """Move the queries on by `offset`."""
        return Grid(self.b, self.h, self.i_lo + offset, self.i_hi + offset, self.j_lo, self.j_hi)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[b, h, t_q, t_k]."""
        return len(self.b), len(self.h), len(self.i_lo), len(self.j_lo)

    def look_at_every_pair(self, allows: Allows) -> tuple[Tensor, Tensor]:
        """Answer `some` and `every` by asking for each pair, a few rows of tiles at a time."""
        some = torch.zeros(self.shape, dtype=torch.bool, device=self.b.device)
        every = torch.zeros_like(some)
        if some.numel() == 0:
            return some, every
        j = torch.arange(int(self.j_lo[0]), int(self.j_hi[-1]) + 1, device=self.b.device)
        batch, heads, _, t_k = self.shape
        tile_of_key = torch.searchsorted(self.j_lo, j, right=True) - 1
        keys = torch.zeros(t_k, device=j.device).index_add_(0, tile_of_key, torch.ones(len(j), device=j.device))
        rows_at_once = max(1, LOOK_AT_ONCE // max(1, batch * heads * len(j)))
        for t, (lo, hi) in enumerate(zip(self.i_lo.flatten().tolist(), self.i_hi.flatten().tolist(), strict=True)):
            count = torch.zeros(batch, heads, t_k, device=j.device)
            for start in range(lo, hi + 1, rows_at_once):
                i = torch.arange(start, min(start + rows_at_once, hi + 1), device=j.device)
                met = allows(self.b, self.h, i.view(-1, 1), j)
                met = met.expand(batch, heads, len(i), len(j)).sum(2).float()
                count.index_add_(2, tile_of_key, met)
            some[:, :, t] = count > 0
            every[:, :, t] = count == keys * (hi - lo + 1)
        return some, every


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
    def density(self) -> float:
        """Share of the tiles that must be looked into."""
        return float((self.state != EMPTY).float().mean()) if self.state.numel() else 0.0

    def count(self, state: int) -> int:
        """How many tiles are in a state."""
        return int((self.state == state).sum())

    def __repr__(self) -> str:
        b, h, t_q, t_k = self.state.shape
        lead = f"{b}x{h} of " if b * h > 1 else ""
        return (
            f"TileMap({lead}{t_q}x{t_k} tiles of {self.size[0]}x{self.size[1]}: "
            f"{self.count(EMPTY)} empty, {self.count(PARTIAL)} partial, {self.count(FULL)} full)"
        )


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
    if min(both) < 1:
        fail(ValueRangeError, "size", shape_of(size), "tile sizes of at least 1", "use 64 or 128")
    where = torch.device(device or "cpu")
    key = (n_q, n_k, both, offset, str(where))
    if support.tensors():
        return support.memo(("tiles", *key), lambda: _mapped(support, *key))
    return _remembered(support, *key)


def _mapped(
    support: Support, n_q: int, n_k: int, size: tuple[int, int], offset: int, device: str
) -> TileMap:
    batch, heads = support.extent()
    grid = Grid.over(n_q, n_k, size, batch, heads, torch.device(device)).shift(offset)
    some, every = support.cover(grid)
    state = some.to(torch.int8) + (some & every).to(torch.int8)
    return TileMap(state.expand(grid.shape), size, n_q, n_k)


_remembered = lru_cache(maxsize=256)(_mapped)
