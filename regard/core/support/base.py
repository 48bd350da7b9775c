"""Which pairs (query, key) may meet: the algebra of supports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar, NoReturn, Self

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, fail
from regard.core.spans import Spans
from regard.core.tilemap import Grid, TileMap, map_tiles
from regard.core.value import Value, same_objects, value
from regard.core.value_text import Show


class Support(Value):
    """A set of pairs of positions, combined with `&`, `|` and `~`.

    A subclass says what it means in `allows`, elementwise. What it can say of whole tiles
    (`cover`) and of the future (`horizon`) makes it fast, and is never needed to be right.

    >>> from regard.core.support import Causal, Sinks, Window
    >>> Causal() & (Window(1024) | Sinks(4))
    Causal() & (Window(1024) | Sinks(4))
    >>> bool((Causal() & Window(2)).allows(0, 0, torch.tensor(5), torch.tensor(3)))
    False
    """

    # Whether it only asks its parts, so that what they ask of heads is theirs to say.
    _asks_parts: ClassVar[bool] = False

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Say for each pair whether query position i may meet key position j.

        `b`, `h`, `i`, `j` are integer tensors that broadcast against each other; the result is a
        bool tensor that broadcasts to their common shape.
        """
        raise NotImplementedError

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Say for each tile whether some pair may be, and whether every pair is, allowed.

        Two bool tensors that broadcast to [b, h, t_q, t_k]. `some` may err towards True and
        `every` towards False; without a better answer every pair is looked at, and where more is
        asked than `extent` says nothing is known.
        """
        if self.asks_for_more(grid.b.device):
            unknown = torch.ones(grid.shape, dtype=torch.bool, device=grid.b.device)
            return unknown, ~unknown
        return grid.look_at_every_pair(self.allows)

    def asks_for_more(self, device: torch.device) -> bool:
        """Say whether the answer depends on a batch row or head that `extent` does not count.

        Supports of the library say all in their extent. Others are asked about two rows and two
        heads: an answer of more than one pair depends on them, or may.
        """
        if type(self).__module__.startswith("regard.core."):
            return False
        batch, heads = self.extent()
        rows, wide = (2 if batch == 1 else 1), (2 if heads == 1 else 1)
        return self._asked(rows, wide, device) > 1

    def _asked(self, rows: int, heads: int, device: torch.device) -> int:
        """Count the answers to a question about some rows of the batch and some heads."""
        zero = torch.zeros(1, dtype=torch.long, device=device)
        b, h = zero.expand(rows, 1, 1, 1), zero.expand(heads, 1, 1)
        return self.allows(b, h, zero.view(1, 1), zero).numel()

    def take_heads(self, heads: Sequence[int]) -> Self:
        """Return what belongs to some of the query heads; the part is asked by their old numbers.

        >>> from regard.core.support import Where
        >>> even = Where(lambda b, h, i, j: (h % 2 == 0) & (j <= i))
        >>> even.take_heads([1, 2]).matrix(1)[0, :, 0, 0].tolist()
        [False, True]
        """
        numbered_alike = list(heads) == list(range(len(heads)))
        if self._asks_parts or self._head_axis or numbered_alike:
            return super().take_heads(heads)
        own = self.reads().tensors
        try:
            if self._asked(1, 2, own[0].device if own else torch.device("cpu")) < 2:
                return self
        except (RuntimeError, IndexError, ValueError, TypeError):
            pass  # it wants more than one pair: told the old numbers, it is right anyway
        from regard.core.support.heads import OfHeads  # which is a support

        return OfHeads(self, tuple(heads))  # type: ignore[return-value]

    @property
    def moves(self) -> bool:
        """Whether the position of the query matters, so that shifting changes anything."""
        return True

    @property
    def shifted_parts(self) -> tuple[Support, ...]:
        """The parts that `shift` hands a shift down to; none where it is noted here."""
        return ()

    def horizon(self, i: int) -> Spans:
        """Give the key positions that a query at position i or later can still need."""
        return Spans.everything()

    def extent(self) -> tuple[int, int]:
        """Batch size and heads that the support was made for; 1 where it is the same for all."""
        return 1, 1

    def check(self, n: int, m: int) -> None:
        """Raise a `RegardError` if the support cannot serve positions below n and m."""

    def shift(self, offset: int) -> Support:
        """Give the same support for queries that start at position `offset`."""
        return Shifted(self, offset) if offset and self.moves else self

    def tiles(
        self,
        n_q: int,
        n_k: int,
        size: int | tuple[int, int] = 64,
        *,
        offset: int = 0,
        device: torch.device | str | None = None,
    ) -> TileMap:
        """Say which tiles of the n_q x n_k plane are empty, full or partial.

        >>> from regard.core.support import Causal
        >>> Causal().tiles(4, 4, 2)
        TileMap(2x2 tiles of 2x2: 1 empty, 2 partial, 1 full)
        """
        return map_tiles(self, n_q, n_k, size, offset, device)

    def matrix(self, n: int, m: int | None = None) -> Tensor:
        """Write the support out as a bool tensor [b, h, n, m]; for small sizes and pictures.

        >>> from regard.core.support import Causal
        >>> Causal().matrix(3)[0, 0].int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
        """
        m = n if m is None else m
        batch, heads = self.extent()
        b, h = torch.arange(batch).view(-1, 1, 1, 1), torch.arange(heads).view(-1, 1, 1)
        i, j = torch.arange(n).view(-1, 1), torch.arange(m)
        return self.allows(b, h, i, j).expand(batch, heads, n, m)

    def __and__(self, other: Support) -> Support:
        return _joined(Both, self, other)

    def __or__(self, other: Support) -> Support:
        return _joined(Either, self, other)

    def __bool__(self) -> NoReturn:
        fail(
            RuleError,
            "support",
            f"{self} where Python asks whether it is true",
            "supports joined by operators that keep both",
            "use & in place of `and`, | of `or`, ~ of `not`; ask `is None` of what may be None",
        )

    # A function on the left is told the same as one on the right.
    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> Support:
        return self.part if isinstance(self, Other) else Other(self)


def _joined(kind: type[Both] | type[Either], a: Support, b: Support) -> Support:
    """Join two supports, keeping nested joins of one kind flat and free of repeats."""
    if not isinstance(b, Support):
        fail(
            RuleError,
            "support",
            f"{b!r}",
            "a Support on both sides of & and |",
            "wrap a function as Where(function)",
        )
    all_, nobody = Everything(), Other(Everything())
    neutral, absorbing = (all_, nobody) if kind is Both else (nobody, all_)
    parts: list[Support] = []
    for part in (a, b):
        for one in part.parts if isinstance(part, kind) else (part,):
            if one == absorbing:
                return absorbing
            # Equal tables that may come to differ, when one changes in place, both stay.
            if one != neutral and not any(same_objects(one, x) for x in parts):
                parts.append(one)
    if not parts:
        return neutral
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def common_extent(parts: Sequence[Support]) -> tuple[int, int]:
    """Batch and heads that several supports agree on."""
    found = [p.extent() for p in parts]
    for axis, name in ((0, "batch"), (1, "heads")):
        sizes = {e[axis] for e in found} - {1}
        if len(sizes) > 1:
            fail(
                ShapeError,
                name,
                f"parts made for {sorted(sizes)}",
                "one size in all parts",
                "build every part from tensors of the same batch and heads",
            )
    return max((e[0] for e in found), default=1), max((e[1] for e in found), default=1)


@value
class Everything(Support):
    """Every query may meet every key.

    >>> Everything().matrix(2)[0, 0].tolist()
    [[True, True], [True, True]]
    """

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow all."""
        return (i == i) & (j == j)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Every tile is full."""
        yes = torch.ones_like(grid.i_lo + grid.j_lo, dtype=torch.bool)
        return yes, yes

    @property
    def moves(self) -> bool:
        """The position of the query is not asked for."""
        return False


class Joined(Support):
    """What `Both` and `Either` share: they ask their parts, whose order does not matter."""

    parts: tuple[Support, ...]
    _asks_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        flat: list[Support] = []
        for part in self.parts:
            flat += part.parts if isinstance(part, type(self)) else (part,)
        object.__setattr__(self, "parts", tuple(flat))

    def _says_the_same(self, other: Joined) -> bool:
        left = list(other.parts)
        if len(left) != len(self.parts):
            return False
        for part in self.parts:
            if part not in left:
                return False
            left.remove(part)
        return True

    def _hashed(self) -> int:
        return hash((type(self).__name__, frozenset(map(hash, self.parts))))

    @property
    def moves(self) -> bool:
        """Whether any part asks for the position of the query."""
        return any(p.moves for p in self.parts)

    @property
    def shifted_parts(self) -> tuple[Support, ...]:
        """Every part."""
        return self.parts

    def extent(self) -> tuple[int, int]:
        """The extent that the parts agree on."""
        return common_extent(self.parts)

    def check(self, n: int, m: int) -> None:
        """Check every part."""
        for part in self.parts:
            part.check(n, m)

    def shift(self, offset: int) -> Support:
        """Shift every part."""
        return self.replace(parts=tuple(p.shift(offset) for p in self.parts))


@value
class Both(Joined):
    """Pairs that all parts allow; written `a & b`.

    >>> Everything() & Everything()
    Everything()
    """

    parts: tuple[Support, ...]

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow what every part allows."""
        return reduce(torch.logical_and, (p.allows(b, h, i, j) for p in self.parts))

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Combine the answers of the parts."""
        some, every = zip(*(p.cover(grid) for p in self.parts), strict=True)
        return reduce(torch.logical_and, some), reduce(torch.logical_and, every)

    def horizon(self, i: int) -> Spans:
        """Keys that every part can still need."""
        return reduce(lambda a, b: a & b, (p.horizon(i) for p in self.parts))

    def _text(self, show: Show) -> str:
        said = (f"({show(p)})" if isinstance(p, Either) else show(p) for p in self.parts)
        return " & ".join(said)


@value
class Either(Joined):
    """Pairs that at least one part allows; written `a | b`."""

    parts: tuple[Support, ...]

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow what any part allows."""
        return reduce(torch.logical_or, (p.allows(b, h, i, j) for p in self.parts))

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Combine the answers of the parts."""
        some, every = zip(*(p.cover(grid) for p in self.parts), strict=True)
        return reduce(torch.logical_or, some), reduce(torch.logical_or, every)

    def horizon(self, i: int) -> Spans:
        """Keys that any part can still need."""
        return reduce(lambda a, b: a | b, (p.horizon(i) for p in self.parts))

    def _text(self, show: Show) -> str:
        said = (f"({show(p)})" if isinstance(p, Both) else show(p) for p in self.parts)
        return " | ".join(said)


@value
class Other(Support):
    """Pairs that a support does not allow; written `~a`.

    >>> ~Everything() | Everything(), ~~Everything()
    (Everything(), Everything())
    """

    part: Support
    _asks_parts: ClassVar[bool] = True

    @property
    def moves(self) -> bool:
        """Whether the part asks for the position of the query."""
        return self.part.moves

    @property
    def shifted_parts(self) -> tuple[Support, ...]:
        """The part."""
        return (self.part,)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow what the part forbids."""
        return ~self.part.allows(b, h, i, j)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """A tile is full where the part has none, and empty where it has all."""
        some, every = self.part.cover(grid)
        return ~every, ~some

    def extent(self) -> tuple[int, int]:
        """The extent of the part."""
        return self.part.extent()

    def check(self, n: int, m: int) -> None:
        """Check the part."""
        self.part.check(n, m)

    def shift(self, offset: int) -> Support:
        """Shift the part."""
        return Other(self.part.shift(offset))

    def _text(self, show: Show) -> str:
        inside = show(self.part)
        return f"~({inside})" if isinstance(self.part, Both | Either) else f"~{inside}"


@value
class Shifted(Support):
    """A support whose queries start at position `offset`; made by `shift`.

    >>> Everything().shift(3)
    Everything()
    """

    part: Support
    offset: int
    _asks_parts: ClassVar[bool] = True

    def _text(self, show: Show) -> str:
        inside = show(self.part)
        alone = not isinstance(self.part, Both | Either | Other)
        return f"{inside if alone else f'({inside})'}.shift({self.offset})"

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Ask the part about the later position."""
        return self.part.allows(b, h, i + self.offset, j)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Ask the part about the later tiles."""
        return self.part.cover(grid.shift(self.offset))

    def horizon(self, i: int) -> Spans:
        """Ask the part about the later position."""
        return self.part.horizon(i + self.offset)

    def extent(self) -> tuple[int, int]:
        """The extent of the part."""
        return self.part.extent()

    def check(self, n: int, m: int) -> None:
        """Check the part for the positions it will see."""
        self.part.check(n + self.offset, m)

    def shift(self, offset: int) -> Support:
        """Add to the shift."""
        return self.part.shift(self.offset + offset)


def common_shift(support: Support) -> int:
    """Return the offset that every part of a support that moves is shifted by; 0 if none is.

    >>> from regard.core.support import Causal, Sinks
    >>> common_shift(Causal().shift(3) & Sinks(4)), common_shift(Causal().shift(3) & Causal())
    (3, 0)
    """
    return min((s for s in _shifts(support)), default=0)


def _shifts(support: Support) -> list[int]:
    if isinstance(support, Shifted):
        return [support.offset]
    if not support.moves:
        return []
    parts = support.shifted_parts
    return [s for part in parts for s in _shifts(part)] if parts else [0]
