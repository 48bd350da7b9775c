"""Supports that somebody chose: tiles, keys, a mixture over heads, any function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, fail, shape_of
from regard.core.spans import Spans
from regard.core.support.bands import need_count
from regard.core.support.base import Support, common_extent
from regard.core.tilemap import Grid
from regard.core.value import Value, value
from regard.core.value_text import Show


def pick(x: Tensor, b: Tensor, h: Tensor, *rest: Tensor) -> Tensor:
    """Index x [b or 1, h or 1, ...] by batch, head and the given places."""
    return x[(b if x.shape[0] > 1 else b * 0, h if x.shape[1] > 1 else h * 0, *rest)]


@value
class Tiles(Support):
    """A query attends to the tiles that were chosen for its own tile.

    `chosen` bool [b or 1, h or 1, t_q, t_k]; `size` is the side of a tile, or (queries, keys);
    `start` is the position of the first query row. The value that block selection, routing,
    sparse prefill and page selection share.

    >>> chosen = torch.tensor([[True, False], [True, True]])[None, None]
    >>> Tiles(chosen, 2).matrix(4)[0, 0].int().tolist()[0]
    [1, 1, 0, 0]
    """

    chosen: Tensor
    size: tuple[int, int]
    start: int = 0

    _head_axis: ClassVar = {"chosen": 1}

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if not isinstance(size, Sequence) or len(size) != 2:
            fail(
                RuleError,
                "size",
                shape_of(size),
                "one side, or (queries, keys)",
                "pass size=64",
            )
        for side in size:
            need_count("size", side)
        need_count("start", self.start, 0)
        object.__setattr__(self, "size", tuple(size))
        x = self.chosen
        if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype != torch.bool:
            said = shape_of(x) + (f" of {x.dtype}" if isinstance(x, Tensor) else "")
            fail(
                ShapeError,
                "chosen",
                said,
                "a bool tensor [b or 1, h or 1, t_q, t_k]",
                "add the missing leading axes with x[None, None]",
            )

    def _tile(self, position: Tensor, side: int) -> Tensor:
        axis = 2 + side
        tile = torch.div(position, self.size[side], rounding_mode="floor")
        return tile.clamp(0, self.chosen.shape[axis] - 1)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the chosen tiles."""
        row, column = self._tile(i - self.start, 0), self._tile(j, 1)
        return pick(self.chosen, b, h, row, column)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Add up the chosen tiles that each tile of the grid touches."""
        rows = (
            self._tile(grid.i_lo.flatten() - self.start, 0),
            self._tile(grid.i_hi.flatten() - self.start, 0),
        )
        columns = self._tile(grid.j_lo, 1), self._tile(grid.j_hi, 1)
        total = torch.nn.functional.pad(self.chosen.int().cumsum(2).cumsum(3), (1, 0, 1, 0))
        count = (
            total[:, :, rows[1] + 1][..., columns[1] + 1]
            - total[:, :, rows[0]][..., columns[1] + 1]
            - total[:, :, rows[1] + 1][..., columns[0]]
            + total[:, :, rows[0]][..., columns[0]]
        )
        area = (rows[1] - rows[0] + 1)[:, None] * (columns[1] - columns[0] + 1)
        return count > 0, count == area

    def tile_size(self) -> tuple[int, int] | None:
        """Return the chosen tiles, where they are large enough to be worth a kernel."""
        return self.size if min(self.size) >= 16 else None

    def extent(self) -> tuple[int, int]:
        """Return batch and heads of the choice."""
        return self.chosen.shape[0], self.chosen.shape[1]

    def check(self, n: int, m: int) -> None:
        """There must be a tile for every position."""
        need = (-(-(n - self.start) // self.size[0]), -(-m // self.size[1]))
        have = tuple(self.chosen.shape[2:])
        if have[0] < need[0] or have[1] < need[1]:
            fail(
                ShapeError,
                "chosen",
                f"{have[0]}x{have[1]} tiles of {self.size}",
                f"at least {need[0]}x{need[1]} for {n} queries and {m} keys",
                "choose tiles for the whole sequence",
            )


@value
class ChosenKeys(Support):
    """A query attends to the keys listed for it.

    `index` int [b or 1, h or 1, n or 1, c] holds key positions; a negative entry is no key. With
    one row (n = 1) all queries share the list.

    >>> ChosenKeys(torch.tensor([[[[0, 2]]]])).matrix(1, 3)[0, 0].int().tolist()
    [[1, 0, 1]]
    """

    index: Tensor

    _head_axis: ClassVar = {"index": 1}

    def __post_init__(self) -> None:
        x = self.index
        if (
            not isinstance(x, Tensor)
            or x.dim() != 4
            or x.is_floating_point()
            or x.dtype == torch.bool
        ):
            fail(
                ShapeError,
                "index",
                shape_of(x),
                "an int tensor [b or 1, h or 1, n or 1, c]",
                "add the missing leading axes with x[None, None]",
            )

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the listed keys."""
        rows = self.index.shape[2]
        row = i.clamp(0, rows - 1) if rows > 1 else i * 0
        met = (b == b) & (h == h) & (i == i) & (j != j)
        for c in range(self.index.shape[3]):
            met = met | (pick(self.index, b, h, row, i * 0 + c) == j)
        return met

    def extent(self) -> tuple[int, int]:
        """Return batch and heads of the lists."""
        return self.index.shape[0], self.index.shape[1]

    @property
    def moves(self) -> bool:
        """Whether queries have lists of their own."""
        return self.index.shape[2] > 1

    def horizon(self, i: int) -> Spans:
        """Return the keys of the rows that remain."""
        rows = self.index[:, :, i:] if self.index.shape[2] > 1 else self.index
        return Spans.of(*((k, k + 1) for k in rows.unique().tolist() if k >= 0))

    def check(self, n: int, m: int) -> None:
        """There must be a list for every query."""
        if self.index.shape[2] not in (1,) and self.index.shape[2] < n:
            fail(
                ShapeError,
                "index",
                f"lists for {self.index.shape[2]} queries",
                f"one list, or one for each of {n}",
                "list the keys of every query",
            )


@value
class PerHead(Support):
    """Each query head has its own support.

    >>> from regard.core.support import Causal, Window
    >>> mixed = PerHead((Causal(), Causal() & Window(1)))
    >>> mixed.matrix(2)[0].int().tolist()
    [[[1, 0], [1, 1]], [[1, 0], [0, 1]]]
    """

    supports: tuple[Support, ...]
    _asks_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        supports = tuple(self.supports) if isinstance(self.supports, Sequence) else ()
        if not supports or not all(isinstance(s, Support) for s in supports):
            fail(
                RuleError,
                "supports",
                f"{self.supports!r}",
                "one Support for each query head",
                "pass PerHead([support_of_head_0, ...])",
            )
        object.__setattr__(self, "supports", supports)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Ask the support of the head."""
        met = (h != h) & (i != i) & (j != j)
        for head, support in enumerate(self.supports):
            met = met | ((h == head) & support.allows(b, h, i, j))
        return met

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Stack the answers of the heads."""
        shape = (grid.shape[0], len(self.supports), *grid.shape[2:])
        some, every = (torch.zeros(shape, dtype=torch.bool, device=grid.b.device) for _ in "ab")
        for support in dict.fromkeys(self.supports):
            heads = [h for h, s in enumerate(self.supports) if s == support]
            own_some, own_every = (x.expand(shape) for x in support.cover(grid))
            some[:, heads], every[:, heads] = own_some[:, heads], own_every[:, heads]
        return some, every

    def take_heads(self, heads: Sequence[int]) -> Self:
        """Keep the supports of some heads."""
        return PerHead(tuple(self.supports[h].take_heads(heads) for h in heads))  # type: ignore[return-value]

    def per_head(self) -> tuple[Support, ...]:
        """The supports."""
        return self.supports

    def horizon(self, i: int) -> Spans:
        """Return keys that any head can still need."""
        spans = Spans.nothing()
        for support in self.supports:
            spans = spans | support.horizon(i)
        return spans

    def extent(self) -> tuple[int, int]:
        """Return the batch of the parts, and as many heads as supports."""
        return common_extent(self.supports)[0], len(self.supports)

    def check(self, n: int, m: int) -> None:
        """Check every part."""
        for support in self.supports:
            support.check(n, m)

    @property
    def moves(self) -> bool:
        """Whether any head asks for the position of the query."""
        return any(s.moves for s in self.supports)

    @property
    def shifted_parts(self) -> tuple[Support, ...]:
        """The supports of all heads."""
        return self.supports

    def shift(self, offset: int) -> Support:
        """Shift every part."""
        return PerHead(tuple(s.shift(offset) for s in self.supports))

    def counted_from(self, i: int, j: int) -> Support | None:
        """Count in every part."""
        found = [s.counted_from(i, j) for s in self.supports]
        return None if None in found else PerHead(tuple(x for x in found if x is not None))

    def _text(self, show: Show) -> str:
        runs = [(own, len(list(run))) for own, run in groupby(map(show, self.supports))]
        said = " + ".join(f"[{own}] * {count}" if count > 1 else f"[{own}]" for own, count in runs)
        return f"PerHead({said})"


@value
class Extended(Support):
    """A support over the first `keys` keys, beside extra ones that every query may attend to.

    >>> from regard.core.support import Causal
    >>> Extended(Causal(), 2).matrix(2, 3)[0, 0].int().tolist()
    [[1, 0, 1], [1, 1, 1]]
    """

    part: Support
    keys: int
    _asks_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_count("keys", self.keys, 0)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the extra keys, and ask the part about the others."""
        known = self.part.allows(b, h, i, j.clamp(max=max(self.keys - 1, 0)))
        return ((j < self.keys) & known) | ((j >= self.keys) & (i == i))

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Tiles of extra keys are full, and tiles with some of them are not empty."""
        some, every = self.part.cover(grid)
        extra, known = grid.j_lo >= self.keys, grid.j_hi < self.keys
        return some | ~known, extra | (every & known)

    def extent(self) -> tuple[int, int]:
        """Return the extent of the part."""
        return self.part.extent()

    def check(self, n: int, m: int) -> None:
        """The part must serve its own keys."""
        self.part.check(n, min(m, self.keys))


@value
class Where(Support):
    """Pairs that a function allows: `test(b, h, i, j)` on integer tensors gives a bool tensor.

    >>> Where(lambda b, h, i, j: (i + j) % 2 == 0).matrix(2)[0, 0].int().tolist()
    [[1, 0], [0, 1]]
    """

    test: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.test):
            fail(
                RuleError,
                "test",
                shape_of(self.test),
                "a function of (b, h, i, j)",
                "pass a function that gives a bool tensor",
            )

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Ask the function."""
        met = self.test(b, h, i, j)
        if not isinstance(met, Tensor) or met.dtype != torch.bool:
            said = f"{met.dtype}" if isinstance(met, Tensor) else shape_of(met)
            fail(RuleError, "test", said, "a bool tensor for (b, h, i, j)", "compare, do not count")
        return met & (i == i) & (j == j)

    def asks_for_more(self, device: torch.device) -> bool:
        """Return whether the answer depends on the batch row or the head, beside the positions.

        The support cannot know how many of them a call will have.
        """
        return self._asked(2, 2, device) > 1


def asks_for_more(support: Support, device: torch.device) -> bool:
    """Return whether some part of a support asks for batch rows or heads that no extent counts.

    Its answer for one head must then not be taken for another.
    """

    def parts(x: Any) -> Iterator[Support]:
        if isinstance(x, Support):
            yield x
        inside = [y for _, y in x.fields()] if isinstance(x, Value) else x
        for part in inside if isinstance(inside, list | tuple) else ():
            yield from parts(part)

    return any(x.asks_for_more(device) for x in parts(support))
