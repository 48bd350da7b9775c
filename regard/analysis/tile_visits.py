"""How many tiles a fused kernel visits for attention on a lattice, counted without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from regard.core.errors import ShapeError, fail
from regard.core.method import method
from regard.core.support import Neighborhood
from regard.core.support.bands import need_count
from regard.core.support.lattice import per_axis


@dataclass(frozen=True)
class TileVisits:
    """Pairs of a query tile and a key tile: `visited`, those `used` by all their pairs, of `total`.

    `pairs` counts the pairs of tokens that attend, of `all_pairs`.
    """

    visited: int
    used: int
    total: int
    pairs: int
    all_pairs: int

    @property
    def speed_up(self) -> float:
        """How much less a kernel does that skips tiles which no query of a tile attends to."""
        return self.total / self.visited

    @property
    def bound(self) -> float:
        """The most that skipping can gain: all pairs over those that attend."""
        return self.all_pairs / self.pairs

    @property
    def block_sparse(self) -> bool:
        """Whether nothing within a visited tile is masked: no work is wasted."""
        return self.visited == self.used

    def __mul__(self, other: TileVisits) -> TileVisits:
        """Join two axes: windows are boxes, so counts multiply."""
        return TileVisits(
            self.visited * other.visited, self.used * other.used, self.total * other.total,
            self.pairs * other.pairs, self.all_pairs * other.all_pairs,
        )  # fmt: skip


def _tiles(name: str, size: int | Sequence[int], near: Neighborhood) -> tuple[int, ...]:
    found = per_axis(name, size, len(near.lattice))
    for x in found:
        need_count(name, x)
    return found


def _along(near: Neighborhood, axis: int, q_tile: int, k_tile: int) -> TileVisits:
    """Count on one axis, tile by tile; dilated tokens are laid out residue by residue."""
    n, d = near.lattice[axis], near.dilation[axis]
    visited = used = pairs = 0
    for residue in range(d):
        places = torch.arange(residue, n, d)
        tiles = places.split(k_tile)
        for x in places.split(q_tile):
            allowed = near.along(axis, x[:, None], places)
            pairs += int(allowed.sum())
            column = allowed.any(0).split(k_tile), allowed.all(0).split(k_tile)
            visited += sum(bool(some.any()) for some in column[0])
            used += sum(bool(every.all()) for every in column[1])
        assert len(tiles) == len(column[0])
    total = -(-n // q_tile) * -(-n // k_tile)
    return TileVisits(visited, used, total, pairs, n * n)


@method(
    "gna",
    call="import regard\n"
    "from regard.analysis.tile_visits import tile_visits\n"
    "near = regard.Neighborhood((80, 80), (256, 256), stride=(16, 16))\n"
    "print(tile_visits(near, (16, 16), (16, 8)).speed_up)",
)
def tile_visits(
    near: Neighborhood, q_tile: int | Sequence[int], k_tile: int | Sequence[int] | None = None
) -> TileVisits:
    """Count the tiles that a kernel visits when both queries and keys are tiled in boxes.

    `q_tile` and `k_tile` (the same, if None) are a number, or one for each axis of the lattice.
    A query tile visits each key tile that holds a key of any of its queries. Tokens of one residue
    of a dilation are tiled apart from the others, as a kernel lays them out; `total` is that of
    full attention. Windows of several axes are boxes, and each axis is counted alone.

    >>> near = Neighborhood((80, 80), (256, 256), stride=(16, 16))
    >>> found = tile_visits(near, (16, 16), (16, 8))
    >>> found.speed_up, found.bound, found.block_sparse
    (10.24, 10.24, True)
    >>> tile_visits(Neighborhood((80, 80), (256, 256)), (16, 16), (16, 8)).speed_up < 8
    True
    """
    if not isinstance(near, Neighborhood):
        fail(
            ShapeError, "near", f"{near}", "a Neighborhood",
            "use `support.tiles(n, m)` for any other support",
        )  # fmt: skip
    q_sides = _tiles("q_tile", q_tile, near)
    k_sides = q_sides if k_tile is None else _tiles("k_tile", k_tile, near)
    axes = [_along(near, i, *sides) for i, sides in enumerate(zip(q_sides, k_sides, strict=True))]
    return prod(axes[1:], start=axes[0])


def fastest_stride(
    near: Neighborhood, q_tile: int | Sequence[int], k_tile: int | Sequence[int] | None = None
) -> Neighborhood:
    """Return the neighborhood with the stride that visits fewest tiles, the least on each axis.

    >>> near = Neighborhood((80, 80), (256, 256))
    >>> fastest_stride(near, (16, 16), (16, 8)).stride
    (16, 16)
    """
    q_sides = _tiles("q_tile", q_tile, near)
    k_sides = q_sides if k_tile is None else _tiles("k_tile", k_tile, near)
    chosen = []
    for axis, sides in enumerate(zip(q_sides, k_sides, strict=True)):
        counts = []
        for stride in range(1, near.kernel[axis] + 1):
            strides = [1] * len(near.lattice)
            strides[axis] = stride
            one = Neighborhood(
                near.kernel, near.lattice, near.dilation, tuple(strides), near.causal
            )
            counts.append(_along(one, axis, *sides).visited)
        chosen.append(1 + counts.index(min(counts)))
    return Neighborhood(near.kernel, near.lattice, near.dilation, tuple(chosen), near.causal)
