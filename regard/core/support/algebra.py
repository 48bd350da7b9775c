"""The algebra of supports: everything, `&`, `|`, `~`, and shifts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import and_, or_
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.band import Band
from regard.core.errors import RuleError, ShapeError, fail
from regard.core.runs import Lines, Runs
from regard.core.spans import Spans
from regard.core.support.base import Support
from regard.core.tilemap import Grid
from regard.core.value import same_objects, value
from regard.core.value_text import Show


def joined(kind: type[Both] | type[Either], a: Support, b: Support) -> Support:
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
    """Return batch and heads that several supports agree on."""
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
    """Every query may attend to every key.

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

    def runs(self, lines: Lines) -> tuple[Runs, Runs]:
        """Return every tile."""
        zero = lines.first.new_zeros(1, 1)
        whole = Runs.between(zero, zero + lines.tiles, lines.tiles)
        return whole, whole

    def band(self) -> Band:
        """Any distance."""
        return Band()

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

    def anchor(self) -> int | None:
        """As many keys as any part asks by place."""
        found = [p.anchor() for p in self.parts]
        return None if None in found else max(x for x in found if x is not None)

    def _runs_of_parts(self, lines: Lines) -> list[tuple[Runs, Runs]] | None:
        found = [p.runs(lines) for p in self.parts]
        return None if None in found else [x for x in found if x is not None]

    def _band_of_parts(self, join: Callable[[Band, Band], Band | None]) -> Band | None:
        found = self.parts[0].band()
        for part in self.parts[1:]:
            own = None if found is None else part.band()
            found = None if found is None or own is None else join(found, own)
        return found

    @property
    def moves(self) -> bool:
        """Whether any part asks for the position of the query."""
        return any(p.moves for p in self.parts)

    @property
    def shifted_parts(self) -> tuple[Support, ...]:
        """Every part."""
        return self.parts

    def extent(self) -> tuple[int, int]:
        """Return the extent that the parts agree on."""
        return common_extent(self.parts)

    def check(self, n: int, m: int) -> None:
        """Check every part."""
        for part in self.parts:
            part.check(n, m)

    def shift(self, offset: int) -> Support:
        """Shift every part."""
        return self.replace(parts=tuple(p.shift(offset) for p in self.parts))

    def counted_from(self, i: int, j: int) -> Support | None:
        """Count in every part."""
        found = [p.counted_from(i, j) for p in self.parts]
        if None in found:
            return None
        join = and_ if isinstance(self, Both) else or_
        return reduce(join, (x for x in found if x is not None))


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

    def runs(self, lines: Lines) -> tuple[Runs, Runs] | None:
        """Return what the runs of the parts have in common."""
        found = self._runs_of_parts(lines) if self.band() is None else None
        if found is None:
            return super().runs(lines)
        return reduce(and_, (x for x, _ in found)), reduce(and_, (x for _, x in found))

    def horizon(self, i: int) -> Spans:
        """Return keys that every part can still need."""
        return reduce(lambda a, b: a & b, (p.horizon(i) for p in self.parts))

    def band(self) -> Band | None:
        """Return what the bands of the parts have in common, where that is a band."""
        return self._band_of_parts(Band.meets)

    def order(self, n: int, side: int, device: torch.device) -> Tensor | None:
        """Return the order that the first part asks for."""
        found = (p.order(n, side, device) for p in self.parts)
        return next((x for x in found if x is not None), None)

    def tile_size(self) -> tuple[int, int] | None:
        """Return the tiles that the first part asks for."""
        found = (p.tile_size() for p in self.parts)
        return next((x for x in found if x is not None), None)

    @property
    def conjuncts(self) -> tuple[Support, ...]:
        """The parts."""
        return self.parts

    def per_head(self) -> tuple[Support, ...] | None:
        """Return what the first part that tells heads apart says, beside all others."""
        for place, part in enumerate(self.parts):
            heads = part.per_head()
            if heads is not None:
                rest = self.parts[:place] + self.parts[place + 1 :]
                shared = rest[0] if len(rest) == 1 else Both(rest)
                joint = {own: own & shared for own in dict.fromkeys(heads)}
                return tuple(joint[own] for own in heads)
        return None

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

    def runs(self, lines: Lines) -> tuple[Runs, Runs] | None:
        """Return the runs of all parts."""
        found = self._runs_of_parts(lines) if self.band() is None else None
        if found is None:
            return super().runs(lines)
        return reduce(or_, (x for x, _ in found)), reduce(or_, (x for _, x in found))

    def horizon(self, i: int) -> Spans:
        """Return keys that any part can still need."""
        return reduce(lambda a, b: a | b, (p.horizon(i) for p in self.parts))

    def band(self) -> Band | None:
        """Return the bands of all parts, where they make one: a window with sinks."""
        return self._band_of_parts(Band.joins)

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

    def runs(self, lines: Lines) -> tuple[Runs, Runs] | None:
        """Return what is left between the runs of the part."""
        found = self.part.runs(lines)
        return None if found is None else (~found[1], ~found[0])

    def anchor(self) -> int | None:
        """That of the part."""
        return self.part.anchor()

    def extent(self) -> tuple[int, int]:
        """Return the extent of the part."""
        return self.part.extent()

    def check(self, n: int, m: int) -> None:
        """Check the part."""
        self.part.check(n, m)

    def shift(self, offset: int) -> Support:
        """Shift the part."""
        return Other(self.part.shift(offset))

    def counted_from(self, i: int, j: int) -> Support | None:
        """Count in the part."""
        found = self.part.counted_from(i, j)
        return None if found is None else Other(found)

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

    def runs(self, lines: Lines) -> tuple[Runs, Runs] | None:
        """Ask the part about the later tiles."""
        return self.part.runs(lines.shift(self.offset))

    def anchor(self) -> int | None:
        """That of the part: a shift changes every distance alike."""
        return self.part.anchor()

    def horizon(self, i: int) -> Spans:
        """Ask the part about the later position."""
        return self.part.horizon(i + self.offset)

    def extent(self) -> tuple[int, int]:
        """Return the extent of the part."""
        return self.part.extent()

    def check(self, n: int, m: int) -> None:
        """Check the part for the positions it will see."""
        self.part.check(n + self.offset, m)

    def shift(self, offset: int) -> Support:
        """Add to the shift."""
        return self.part.shift(self.offset + offset)

    def counted_from(self, i: int, j: int) -> Support | None:
        """Count in the part, from later queries."""
        return self.part.counted_from(i + self.offset, j)


def simple_parts(support: Support) -> Iterator[Support]:
    """Yield the parts that are joined by and, or, not.

    >>> from regard.core.support import Causal, Sinks, Window
    >>> list(simple_parts(Causal() & (Window(8) | ~Sinks(4))))
    [Causal(), Window(8), Sinks(4)]
    """
    if isinstance(support, Joined):
        for part in support.parts:
            yield from simple_parts(part)
    elif isinstance(support, Other):
        yield from simple_parts(support.part)
    else:
        yield support


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
