"""A band around the diagonal, perhaps with sinks: a support in four numbers.

A support that is one answers for whole tiles, runs of tiles, horizons and kernels by them.
"""

from __future__ import annotations

from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from regard.core.runs import Lines, Runs
from regard.core.spans import Spans

if TYPE_CHECKING:
    from regard.core.tilemap import Grid

# Beyond any distance.
FAR = 1 << 40


class Band(NamedTuple):
    """Pairs with low <= j - i <= high, and those with j < sinks and j - i <= ahead.

    >>> causal, window = Band(high=0), Band(-7, 7)
    >>> causal.meets(window).allows(torch.tensor([8]), torch.arange(10)).int().tolist()
    [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    """

    low: int = -FAR
    high: int = FAR
    sinks: int = 0
    ahead: int = FAR

    @staticmethod
    def of_sinks(count: int) -> Band:
        """Build a band of the first keys alone."""
        return Band(FAR, -FAR, count)

    @property
    def empty(self) -> bool:
        """Whether no key is allowed by its distance."""
        return self.low > self.high

    def meets(self, other: Band) -> Band | None:
        """Return the band of the pairs in both, or None where these are no band.

        >>> window, first = Band(-7, 7), Band.of_sinks(4)
        >>> window.joins(first).meets(Band(high=0))
        Band(low=-7, high=0, sinks=4, ahead=0)
        >>> window.joins(first).meets(Band(-99)) is None  # which would cut the sinks off
        True
        """
        sunk, plain = (self, other) if self.sinks else (other, self)
        if plain.sinks or (sunk.sinks and plain.low > -FAR):
            return None
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Band(low, high, sunk.sinks, min(sunk.ahead, plain.high))

    def joins(self, other: Band) -> Band | None:
        """Return the band of the pairs in either, or None where these are no band."""
        first, near = (self, other) if self.empty else (other, self)
        if not first.empty or near.empty or near.sinks:
            return None
        return Band(near.low, near.high, first.sinks, first.ahead)

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return for each pair of positions whether it is in the band."""
        apart = j - i
        near = (apart >= self.low) & (apart <= self.high)
        return near | ((j < self.sinks) & (apart <= self.ahead)) if self.sinks else near

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compare the nearest and the farthest corners of each tile: `Support.cover`."""
        near = _within(grid, self.low, self.high)
        if not self.sinks:
            return near
        first = _within(grid, -FAR, self.ahead)
        begun, ended = grid.j_lo < self.sinks, grid.j_hi < self.sinks
        return near[0] | (begun & first[0]), near[1] | (ended & first[1])

    def runs(self, lines: Lines) -> tuple[Runs, Runs]:
        """Return the runs of tiles in reach of some query, and of every query: `Support.runs`."""
        some, every = [], []
        if not self.empty or not self.sinks:
            some.append(lines.some(lines.first + self.low, lines.last + self.high))
            every.append(lines.every(lines.last + self.low, lines.first + self.high))
        if self.sinks:  # one row for all, where nothing bounds the future
            zero, last = lines.first.new_zeros(1, 1), self.sinks - 1
            of_some = of_every = zero + last
            if self.ahead < FAR:
                of_some = (lines.last + self.ahead).clamp(max=last)
                of_every = (lines.first + self.ahead).clamp(max=last)
            some.append(lines.some(zero, of_some))
            every.append(lines.every(zero, of_every))
        return reduce(or_, some), reduce(or_, every)

    def horizon(self, i: int) -> Spans:
        """Return the keys that a query at position i or later can still need."""
        near = Spans.nothing() if self.empty else Spans.of((max(0, i + self.low), None))
        return near | Spans.of((0, self.sinks))

    def seen(self, n: int, m: int, offset: int, device: torch.device) -> Tensor:
        """Count the queries that may attend to each key, [m]; they start at position `offset`.

        >>> Band(high=0).seen(3, 3, 0, torch.device("cpu")).tolist()
        [3, 2, 1]
        """
        i, j = offset, torch.arange(m, device=device)
        first, last = (j - self.high).clamp(i, i + n), (j - self.low).clamp(i - 1, i + n - 1)
        sunk = (j - self.ahead).clamp(i, i + n)
        count = (last - first + 1).clamp(min=0)
        if not self.sinks:
            return count
        both = (last - torch.maximum(first, sunk) + 1).clamp(min=0)
        return torch.where(j < self.sinks, count + (i + n - sunk) - both, count)


def _within(grid: Grid, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return for each tile whether some pair, and whether every pair, has low <= j - i <= high."""
    pairs = []
    if high < FAR or low <= -FAR:
        pairs.append((grid.j_lo <= grid.i_hi + high, grid.j_hi <= grid.i_lo + high))
    if low > -FAR:
        pairs.append((grid.j_hi >= grid.i_lo + low, grid.j_lo >= grid.i_hi + low))
    some, every = zip(*pairs, strict=True)
    return reduce(and_, some), reduce(and_, every)
