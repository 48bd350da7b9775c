"""Supports on one line of positions: bands, sinks, strides and blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.band import Band
from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.runs import Lines, Runs
from regard.core.spans import Spans
from regard.core.support.base import Support
from regard.core.tilemap import Grid
from regard.core.value import value


def need_count(name: str, x: object, least: int = 1) -> None:
    """Raise unless x is a whole number of at least `least`."""
    if isinstance(x, bool) or not isinstance(x, int) or x < least:
        fail(
            ValueRangeError,
            name,
            shape_of(x),
            f"a whole number of at least {least}",
            f"pass {name}={least} or more",
        )


@value
class Causal(Support):
    """A query attends to itself and the past: j <= i.

    >>> Causal().horizon(10)
    Spans(0..)
    """

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the past."""
        return j <= i

    def band(self) -> Band:
        """No key ahead."""
        return Band(high=0)


@value
class Window(Support):
    """A query attends to `left` keys back and `right` keys ahead, itself counted in both.

    `right` is `left` where it is not given, so `Causal() & Window(w)` is the sliding window of w
    keys.

    >>> Window(2).matrix(4)[0, 0].int().tolist()
    [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    >>> (Causal() & Window(100)).horizon(1000)
    Spans(901..)
    """

    left: int
    right: int | None = None

    def __post_init__(self) -> None:
        need_count("left", self.left)
        if self.right is not None:
            need_count("right", self.right)
            if self.right == self.left:  # which says the same
                object.__setattr__(self, "right", None)

    @property
    def reach(self) -> tuple[int, int]:
        """Smallest and largest j - i allowed."""
        return 1 - self.left, (self.left if self.right is None else self.right) - 1

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow what is near."""
        low, high = self.reach
        return (j - i >= low) & (j - i <= high)

    def band(self) -> Band:
        """Return the keys within reach."""
        return Band(*self.reach)


@value
class Sinks(Support):
    """Every query attends to the first `count` keys.

    >>> Sinks(1).matrix(2)[0, 0].int().tolist()
    [[1, 0], [1, 0]]
    """

    count: int

    def __post_init__(self) -> None:
        need_count("count", self.count)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the first keys."""
        return (j < self.count) & (i == i)

    def band(self) -> Band:
        """Return the sinks alone."""
        return Band.of_sinks(self.count)

    def counted_from(self, i: int, j: int) -> Support | None:
        """Leave out earlier keys."""
        from regard.core.support.algebra import Everything  # which is made of supports

        if j < 0:
            return None
        return Sinks(self.count - j) if j < self.count else ~Everything()

    @property
    def moves(self) -> bool:
        """The position of the query is not asked for."""
        return False


@value
class Dilated(Support):
    """A query attends to keys whose distance is a multiple of `step`.

    >>> (Causal() & Dilated(2)).matrix(4)[0, 0].int().tolist()
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    """

    step: int

    def __post_init__(self) -> None:
        need_count("step", self.step)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow whole steps."""
        return (i - j) % self.step == 0

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Tiles of one residue answer at once; others by whether a multiple of the step fits."""
        q, k = grid.i % self.step, grid.j % self.step
        pure = (q.amin(1) == q.amax(1))[:, None] & (k.amin(1) == k.amax(1))
        alike = pure & (q[:, :1] == k[:, 0])
        low, high = grid.i_lo - grid.j_hi, grid.i_hi - grid.j_lo
        fits = torch.div(high, self.step, rounding_mode="floor") * self.step >= low
        return torch.where(pure, alike, fits), alike

    def order(self, n: int, side: int, device: torch.device) -> Tensor:
        """Residue by residue."""
        return torch.argsort(torch.arange(n, device=device) % self.step, stable=True)


@value
class Strided(Support):
    """Every query attends to each `step`-th key, beginning at key `start`; or runs of `size` keys.

    With `size` above 1 the keys are cut into runs of that many, and `step` and `start` count runs.

    >>> Strided(2, start=1).matrix(1, 4)[0, 0].int().tolist()
    [[0, 1, 0, 1]]
    >>> Strided(2, size=2).matrix(1, 6)[0, 0].int().tolist()
    [[1, 1, 0, 0, 1, 1]]
    """

    step: int
    start: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        need_count("step", self.step)
        need_count("start", self.start, 0)
        need_count("size", self.size)

    def _run(self, j: Tensor) -> Tensor:
        return torch.div(j, self.size, rounding_mode="floor")

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the chosen runs."""
        run = self._run(j)
        return ((run - self.start) % self.step == 0) & (run >= self.start) & (i == i)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """A tile has some if the first chosen run at or after its start lies inside."""
        first, last = self._run(grid.j_lo), self._run(grid.j_hi)
        low = (first - self.start).clamp(min=0)
        ahead = torch.div(low + self.step - 1, self.step, rounding_mode="floor") * self.step
        some = (ahead + self.start <= last) & (grid.i_lo == grid.i_lo)
        one_run = (first == last) if self.step > 1 else first >= self.start
        return some, some & one_run

    def horizon(self, i: int) -> Spans:
        """Return the chosen runs of the past, and whatever comes."""
        runs = range(self.start, -(-i // self.size), self.step)
        return Spans.of(*((r * self.size, (r + 1) * self.size) for r in runs), (i, None))

    @property
    def moves(self) -> bool:
        """The position of the query is not asked for."""
        return False


@value
class Blocks(Support):
    """A query attends to the keys of its own block of `size`, and of `back` blocks before it and
    `ahead` after it.

    >>> Blocks(2).matrix(4)[0, 0].int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """

    size: int
    back: int = 0
    ahead: int = 0

    def __post_init__(self) -> None:
        need_count("size", self.size)
        need_count("back", self.back, 0)
        need_count("ahead", self.ahead, 0)

    def _block(self, position: Tensor) -> Tensor:
        return torch.div(position, self.size, rounding_mode="floor")

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the blocks around."""
        apart = self._block(j) - self._block(i)
        return (apart >= -self.back) & (apart <= self.ahead)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compare the blocks of the corners."""
        back = self._block(grid.j_lo) - self._block(grid.i_hi)
        ahead = self._block(grid.j_hi) - self._block(grid.i_lo)
        some = (ahead >= -self.back) & (back <= self.ahead)
        return some, (back >= -self.back) & (ahead <= self.ahead)

    def runs(self, lines: Lines) -> tuple[Runs, Runs]:
        """From the first key of a block to the last key of another."""
        low, high = (
            torch.div(x, self.size, rounding_mode="floor") for x in (lines.first, lines.last)
        )
        some = lines.some((low - self.back) * self.size, (high + self.ahead + 1) * self.size - 1)
        first, last = (high - self.back) * self.size, (low + self.ahead + 1) * self.size - 1
        return some, lines.every(first, last)

    def horizon(self, i: int) -> Spans:
        """Keys from the first block that query i sees."""
        return Spans.of((max(0, (i // self.size - self.back) * self.size), None))
