"""Which pairs (query, key) may attend to each other: what every support answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NoReturn, Self

import torch
from torch import Tensor

from regard.core.band import Band
from regard.core.errors import RuleError, fail
from regard.core.runs import Lines, Runs
from regard.core.spans import Spans
from regard.core.tilemap import Grid, TileMap, map_tiles
from regard.core.value import Value


class Support(Value):
    """A set of pairs of positions, combined with `&`, `|` and `~`.

    A subclass says what it means in `allows`, elementwise. All else makes it fast, and is never
    needed to be right: what it can say of whole tiles (`cover`, `runs`), of the future (`horizon`),
    of the order of tokens that suits it (`order`, `tile_size`); or that it is a `band`, from which
    the others follow.

    >>> from regard.core.support import Causal, Sinks, Window
    >>> Causal() & (Window(1024) | Sinks(4))
    Causal() & (Window(1024) | Sinks(4))
    >>> bool((Causal() & Window(2)).allows(0, 0, torch.tensor(5), torch.tensor(3)))
    False
    """

    # Whether it only asks its parts, so that what they ask of heads is theirs to say.
    _asks_parts: ClassVar[bool] = False

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Return for each pair whether query position i may attend to key position j.

        `b`, `h`, `i`, `j` are integer tensors that broadcast against each other; the result is a
        bool tensor that broadcasts to their common shape.
        """
        raise NotImplementedError

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return for each tile whether some pair may be, and whether every pair is, allowed.

        Two bool tensors that broadcast to [b, h, t_q, t_k]. `some` may err towards True and
        `every` towards False; without a better answer every pair is looked at, and where more is
        asked than `extent` says nothing is known.
        """
        band = self.band()
        if band is not None:
            return band.cover(grid)
        if self.asks_for_more(grid.b.device):
            unknown = torch.ones(grid.shape, dtype=torch.bool, device=grid.b.device)
            return unknown, ~unknown
        return grid.look_at_every_pair(self.allows)

    def asks_for_more(self, device: torch.device) -> bool:
        """Return whether the answer depends on a batch row or head that `extent` does not count.

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
            pass  # it wants more than one pair: with the old numbers it is right anyway
        from regard.core.support.of_heads import OfHeads  # which is a support

        return OfHeads(self, tuple(heads))  # type: ignore[return-value]

    @property
    def moves(self) -> bool:
        """Whether the position of the query matters, so that shifting changes anything."""
        return True

    @property
    def shifted_parts(self) -> tuple[Support, ...]:
        """The parts that `shift` hands a shift down to; none where it is noted here."""
        return ()

    def runs(self, lines: Lines) -> tuple[Runs, Runs] | None:
        """Answer `cover` as runs of tiles of keys, or None where the answer has no such form.

        Then a tile map of a million tokens costs no more than a row of tiles.
        """
        band = self.band()
        return None if band is None else band.runs(lines)

    @property
    def in_runs(self) -> bool:
        """Whether `runs` answers: for one tile as for all, so it is asked of one, once.

        >>> from regard.core.support import Causal, Tiles, Window
        >>> (Causal() & Window(8)).in_runs, Tiles(torch.ones(1, 1, 2, 2).bool(), 8).in_runs
        (True, False)
        """
        lines = Lines.over(1, 1, (1, 1), 0, torch.device("cpu"))
        return self.memo("in runs", lambda: self.runs(lines) is not None)

    def anchor(self) -> int | None:
        """Return how many of the first keys are met by their place; of all others only the
        distance to the query matters. None where more matters.

        >>> from regard.core.support import Blocks, Causal, Sinks, Window
        >>> (Causal() & (Window(8) | Sinks(4))).anchor(), Blocks(8).anchor()
        (4, None)
        """
        band = self.band()
        return None if band is None else band.sinks

    def counted_from(self, i: int, j: int) -> Support | None:
        """Return the same pairs where queries are counted from position i and keys from j.

        None where that has no form: then positions are given to a call. A block of a plane thus has
        a tile map of its own.

        >>> from regard.core.support import Causal, Documents
        >>> later = (Causal() & Documents([0, 0, 1, 1])).counted_from(2, 1)
        >>> later.matrix(2, 3)[0, 0].int().tolist()
        [[0, 1, 0], [0, 1, 1]]
        """
        return self.shift(i - j) if self.anchor() == 0 else None

    def horizon(self, i: int) -> Spans:
        """Return the key positions that a query at position i or later can still need."""
        band = self.band()
        return Spans.everything() if band is None else band.horizon(i)

    def band(self) -> Band | None:
        """Return the band around the diagonal that the support is, or None.

        Kernels for bands then run it, and `cover`, `runs`, `anchor` and `horizon` follow.

        >>> from regard.core.support import Blocks, Causal, Sinks, Window
        >>> (Causal() & (Window(8) | Sinks(4))).band(), Blocks(8).band()
        (Band(low=-7, high=0, sinks=4, ahead=0), None)
        """
        return None

    def order(self, n: int, side: int, device: torch.device) -> Tensor | None:
        """Return positions 0..n-1, [n], in an order in which tiles of `side` attend to few others.

        None where they had best stay as they are.
        """
        return None

    def tile_size(self) -> tuple[int, int] | None:
        """Return the sides of the tiles, of queries and of keys, that suit the support; None: any.

        >>> from regard.core.support import Causal, Neighborhood
        >>> (Causal() & Neighborhood((3, 3), (8, 8))).tile_size()
        (64, 16)
        """
        return None

    @property
    def conjuncts(self) -> tuple[Support, ...]:
        """The parts that must all allow a pair."""
        return (self,)

    def per_head(self) -> tuple[Support, ...] | None:
        """Return the support of each query head, where it says what each head does; else None."""
        return None

    def extent(self) -> tuple[int, int]:
        """Batch size and heads that the support was made for; 1 where it is the same for all."""
        return 1, 1

    def check(self, n: int, m: int) -> None:
        """Raise a `RegardError` if the support cannot serve positions below n and m."""

    def shift(self, offset: int) -> Support:
        """Return the same support for queries that start at position `offset`."""
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
        """Return which tiles of the n_q x n_k plane are empty, full or partial.

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
        return joined(Both, self, other)

    def __or__(self, other: Support) -> Support:
        return joined(Either, self, other)

    def __bool__(self) -> NoReturn:
        fail(
            RuleError,
            "support",
            f"{self} where Python asks whether it is true",
            "supports joined by operators that keep both",
            "use & in place of `and`, | of `or`, ~ of `not`; ask `is None` of what may be None",
        )

    # A function on the left gets the same arguments as one on the right.
    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> Support:
        return self.part if isinstance(self, Other) else Other(self)


# The algebra is made of supports, and supports are joined by it.
from regard.core.support.algebra import (  # noqa: E402
    Both,
    Either,
    Everything,
    Other,
    Shifted,
    common_extent,
    common_shift,
    joined,
)

__all__ = [
    "Both",
    "Either",
    "Everything",
    "Other",
    "Shifted",
    "Support",
    "common_extent",
    "common_shift",
]
