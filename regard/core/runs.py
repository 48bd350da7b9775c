"""Which tiles of keys each tile of queries may attend to, as runs: O(n / tile) where possible.

A tile map of a million tokens has 61 million tiles of 128 x 128, and a window leaves all but three
a row of them empty. Bands, sinks and blocks, and their combinations by `&`, `|` and `~`, return for
each row of tiles the runs of columns in which some pair, and every pair, is allowed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Runs(NamedTuple):
    """Disjoint runs [start, stop) of columns below `end`, in order: both [t or 1, r].

    Empty runs stand last, at `end`. One row stands for all.
    """

    start: Tensor
    stop: Tensor
    end: int

    @staticmethod
    def between(start: Tensor, stop: Tensor, end: int) -> Runs:
        """Build one run for each row, of [t or 1, 1] starts and stops.

        >>> Runs.between(torch.tensor([[-1], [2]]), torch.tensor([[2], [9]]), 4).length().tolist()
        [2, 2]
        """
        start, stop = torch.broadcast_tensors(start, stop)
        return _ordered(start.clamp(0, end), stop.clamp(0, end), end)

    def length(self) -> Tensor:
        """Count the columns in each row, [t or 1]."""
        count: Tensor = (self.stop - self.start).sum(1)
        return count

    def __and__(self, other: Runs) -> Runs:
        start = torch.maximum(self.start[:, :, None], other.start[:, None]).flatten(1)
        stop = torch.minimum(self.stop[:, :, None], other.stop[:, None]).flatten(1)
        return _ordered(start, stop, self.end)

    def __or__(self, other: Runs) -> Runs:
        rows = max(len(self.start), len(other.start))
        start, stop = (
            torch.cat([x.expand(rows, -1) for x in pair], 1)
            for pair in ((self.start, other.start), (self.stop, other.stop))
        )
        start, stop, _ = _ordered(start, stop, self.end)
        if start.shape[1] == 1:
            return Runs(start, stop, self.end)
        if start.shape[1] == 2:
            return _ordered(*_joined(start, stop, self.end), self.end)
        reach = stop.cummax(1).values
        # A run begins where all before it have ended; those that touch are one.
        begins = torch.ones_like(start, dtype=torch.bool)
        begins[:, 1:] = (start[:, 1:] > reach[:, :-1]) & (stop[:, 1:] > start[:, 1:])
        which = begins.cumsum(1) - 1
        first = torch.full_like(start, self.end).scatter_reduce(1, which, start, "amin")
        # Empty runs wait at the end: they must not stretch the run before them to it.
        some = torch.where(stop > start, stop, 0)
        last = torch.zeros_like(stop).scatter_reduce(1, which, some, "amax")
        return _ordered(first, last, self.end)

    def __invert__(self) -> Runs:
        rows = len(self.start)
        zero, end = self.start.new_zeros(rows, 1), self.start.new_full((rows, 1), self.end)
        return _ordered(
            torch.cat([zero, self.stop], 1), torch.cat([self.start, end], 1), self.end
        )  # fmt: skip

    def holds(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return for columns [u, c] in rows [u] whether they are in a run."""
        start, stop = (x.expand(max(len(x), 1), -1) for x in (self.start, self.stop))
        row = rows if len(start) > 1 else torch.zeros_like(rows)
        inside = columns[:, :, None] >= start[row][:, None]
        return (inside & (columns[:, :, None] < stop[row][:, None])).any(-1)

    def listed(self, rows: int) -> tuple[Tensor, Tensor]:
        """List the columns of each row in order: [rows, c], and how many there are [rows].

        >>> runs = Runs.between(torch.tensor([[1], [2]]), torch.tensor([[3], [4]]), 4)
        >>> runs.listed(2)[0].tolist()
        [[1, 2], [2, 3]]
        """
        start, stop = (x.expand(rows, -1).contiguous() for x in (self.start, self.stop))
        length = stop - start
        total = length.cumsum(1)
        count = total[:, -1] if total.shape[1] else total.new_zeros(rows)
        place = torch.arange(int(count.max()) if rows else 0, device=start.device)
        place = place.expand(rows, -1).contiguous()
        run = torch.searchsorted(total, place, right=True).clamp(max=max(total.shape[1] - 1, 0))
        before = total.gather(1, run) - length.gather(1, run)
        return start.gather(1, run) + place - before, count


def _joined(start: Tensor, stop: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Join two runs [t, 2] in order where they touch."""
    touch = (start[:, 1:] <= stop[:, :1]) & (stop[:, 1:] > start[:, 1:])
    if not bool(touch.any()):
        return start, stop
    first = torch.where(touch, torch.maximum(stop[:, :1], stop[:, 1:]), stop[:, :1])
    second = (x[:, 1:].masked_fill(touch, end) for x in (start, stop))
    return tuple(torch.cat([x, y], 1) for x, y in zip((start[:, :1], first), second, strict=True))  # type: ignore[return-value]


def _ordered(start: Tensor, stop: Tensor, end: int) -> Runs:
    """Put empty runs last, and leave out columns of nothing but these; written over both."""
    empty = stop <= start
    start.masked_fill_(empty, end), stop.masked_fill_(empty, end)
    if start.shape[1] > 1:
        if start.shape[1] == 2:  # sorting pairs of a million rows takes longer than all the rest
            swap = start[:, :1] > start[:, 1:]
            if bool(swap.any()):
                start, stop = (torch.where(swap, x.flip(1), x) for x in (start, stop))
        else:
            order = start.argsort(dim=1, stable=True)
            start, stop = start.gather(1, order), stop.gather(1, order)
        used = max(1, int((stop > start).sum(1).max())) if len(start) else 1
        start, stop = start[:, :used], stop[:, :used]
    return Runs(start, stop, end)


class Lines(NamedTuple):
    """Tiles of positions in a row: first and last query of each, [t, 1], and keys in tiles.

    The methods count tiles of keys by where they begin and end.
    """

    first: Tensor
    last: Tensor
    side: int
    keys: int

    @staticmethod
    def over(n_q: int, n_k: int, size: tuple[int, int], offset: int, device: torch.device) -> Lines:
        """Lay tiles over n_q queries from position `offset` on, and n_k keys."""
        first = torch.arange(0, n_q, size[0], device=device)[:, None]
        last = (first + size[0] - 1).clamp(max=n_q - 1)
        return Lines(first + offset, last + offset, size[1], n_k)

    def shift(self, offset: int) -> Lines:
        """Move the queries on."""
        return self._replace(first=self.first + offset, last=self.last + offset)

    @property
    def tiles(self) -> int:
        """How many tiles of keys there are."""
        return -(-self.keys // self.side)

    def begun(self, at: Tensor) -> Tensor:
        """Count the tiles whose first key stands at or before a position."""
        count: Tensor = torch.div(at, self.side, rounding_mode="floor").add_(1)
        return count.clamp_(0, self.tiles)

    def ended(self, at: Tensor) -> Tensor:
        """Count the tiles whose last key stands at or before a position."""
        count: Tensor = torch.div(at + 1, self.side, rounding_mode="floor").clamp_(0, self.tiles)
        return count.masked_fill_(at >= self.keys - 1, self.tiles)

    def some(self, low: Tensor, high: Tensor) -> Runs:
        """Return tiles with a key from position `low` to `high`."""
        return Runs.between(self.ended(low - 1), self.begun(high), self.tiles)

    def every(self, low: Tensor, high: Tensor) -> Runs:
        """Return tiles whose keys all stand from position `low` to `high`."""
        return Runs.between(self.begun(low - 1), self.ended(high), self.tiles)
