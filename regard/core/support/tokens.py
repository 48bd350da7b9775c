"""Supports that ask what the tokens are: documents, padding, prefixes, attributes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.spans import Spans
from regard.core.support.bands import need_count
from regard.core.support.base import Support
from regard.core.tilemap import Grid
from regard.core.value import value

TESTS = ("same", "different", "not after", "before")


def look_up(table: Tensor, b: Tensor, position: Tensor) -> Tensor:
    """Read `table` [b or 1, n] at positions; beyond its ends the nearest entry is read."""
    row = b if table.shape[0] > 1 else b * 0
    return table[row, position.clamp(0, table.shape[1] - 1)]


def as_rows(name: str, x: object, dtype: torch.dtype | None = None) -> Tensor:
    """Return one value for each token, [n] or [b, n], as a tensor [b or 1, n]."""
    if isinstance(x, Sequence) and not isinstance(x, str):
        with suppress(TypeError, ValueError, RuntimeError):  # ragged rows raise below
            x = torch.tensor(x)
    if not isinstance(x, Tensor) or x.dim() not in (1, 2) or x.shape[-1] == 0:
        fail(
            ShapeError,
            name,
            shape_of(x),
            "a tensor of shape [n] or [b, n]",
            f"pass {name} with one entry for each token",
        )
    if dtype == torch.long and x.is_floating_point():
        fail(ShapeError, name, f"a tensor of {x.dtype}", "whole numbers", f"pass {name}.long()")
    x = x[None] if x.dim() == 1 else x
    return x if dtype is None else x.to(dtype)


def whole_numbers(name: str, x: object) -> Tensor:
    """Return one whole number, or a row of them, as an int tensor."""
    found = None
    with suppress(TypeError, ValueError, RuntimeError):
        found = torch.as_tensor(x)
    if found is None or (found.numel() and (found.is_floating_point() or found.is_complex())):
        fail(
            ValueRangeError,
            name,
            shape_of(x),
            "whole numbers of at least 0",
            f"pass {name} as ints, or as an int tensor",
        )
    return found.long()


def within_tiles(table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest entry of `table` [b, n] in each tile of positions [t, size]: [b, t]."""
    runs = table.to(positions.device)[:, positions.clamp(0, table.shape[1] - 1)]
    return runs.amin(-1), runs.amax(-1)


@value
class Attribute(Support):
    """A query attends to keys by an attribute that each token has: kind, time, document, speaker.

    `test` says how the attribute of the key must compare with that of the query: "same",
    "different", "not after" (key <= query) or "before" (key < query).

    >>> time = torch.tensor([0, 0, 1, 1])
    >>> Attribute(time, test="before").matrix(4)[0, 0].int().tolist()
    [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    """

    query: Tensor
    key: Tensor = None  # type: ignore[assignment]  # taken from the query where not given
    test: str = "same"

    def __post_init__(self) -> None:
        query = as_rows("query", self.query)
        object.__setattr__(self, "query", query)
        object.__setattr__(self, "key", query if self.key is None else as_rows("key", self.key))
        rows = {self.query.shape[0], self.key.shape[0]} - {1}
        if len(rows) > 1:
            fail(
                ShapeError,
                "key",
                f"a batch of {self.key.shape[0]}",
                f"1 or {self.query.shape[0]}, as query",
                "give queries and keys the attributes of one batch",
            )
        if self.test not in TESTS:
            fail(RuleError, "test", repr(self.test), f"one of {TESTS}", "pass one of these")

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Compare the attributes."""
        of_query, of_key = look_up(self.query, b, i), look_up(self.key, b, j)
        if self.test == "same":
            return of_query == of_key
        if self.test == "different":
            return of_query != of_key
        return of_key <= of_query if self.test == "not after" else of_key < of_query

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compare the ranges of the attribute in the two sides of the tile."""
        q_lo, q_hi = (x[:, None, :, None] for x in within_tiles(self.query, grid.i))
        k_lo, k_hi = (x[:, None, None, :] for x in within_tiles(self.key, grid.j))
        overlap = (k_lo <= q_hi) & (q_lo <= k_hi)
        constant = (q_lo == q_hi) & (k_lo == k_hi) & (q_lo == k_lo)
        if self.test == "same":
            return overlap, constant
        if self.test == "different":
            return ~constant, ~overlap
        if self.test == "not after":
            return k_lo <= q_hi, k_hi <= q_lo
        return k_lo < q_hi, k_hi < q_lo

    def counted_from(self, i: int, j: int) -> Support | None:
        """Leave out the attributes of earlier tokens."""
        if not (0 <= i < self.query.shape[1] and 0 <= j < self.key.shape[1]):
            return None
        return self.replace(query=self.query[:, i:], key=self.key[:, j:])

    def extent(self) -> tuple[int, int]:
        """Return the batch that the attributes were given for."""
        return max(self.query.shape[0], self.key.shape[0]), 1

    def check(self, n: int, m: int) -> None:
        """Every token needs its attribute."""
        for name, table, size in (("query", self.query, n), ("key", self.key, m)):
            if table.shape[1] < size:
                fail(
                    ShapeError,
                    name,
                    f"attributes for {table.shape[1]} tokens",
                    f"one for each of {size} positions",
                    "give every token its attribute",
                )


@value
class Kinds(Support):
    """A query of one kind attends to keys of the kinds that a small table allows.

    `kinds` [n] or [b, n] names the kind of each token, `table[q, k]` says whether kind q may attend
    to kind k.

    >>> kinds, table = torch.tensor([0, 0, 1]), torch.tensor([[True, False], [True, True]])
    >>> Kinds(kinds, table).matrix(3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """

    kinds: Tensor
    table: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", as_rows("kinds", self.kinds, torch.long))
        table = self.table
        if not isinstance(table, Tensor) or table.dim() != 2 or table.shape[0] != table.shape[1]:
            fail(
                ShapeError,
                "table",
                shape_of(table),
                "a square bool tensor [kinds, kinds]",
                "give one row and one column for each kind",
            )
        object.__setattr__(self, "table", table.bool())
        if int(self.kinds.min()) < 0 or int(self.kinds.max()) >= table.shape[0]:
            fail(
                ValueRangeError,
                "kinds",
                f"kinds up to {int(self.kinds.max())}",
                f"0 to {table.shape[0] - 1}, the rows of the table",
                "add rows to the table",
            )

    def order(self, n: int, side: int, device: torch.device) -> Tensor | None:
        """Kind by kind, where that brings some together, in one order for all rows."""
        if len(self.kinds) > 1 or not self.memo(
            "mixed", lambda: bool((self.kinds.diff() < 0).any())
        ):
            return None
        return torch.argsort(self.kinds[0, :n].to(device), stable=True)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Ask the table."""
        return self.table[look_up(self.kinds, b, i), look_up(self.kinds, b, j)]

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Tiles of one kind on each side are answered by the table, others are partial."""
        q_lo, q_hi = (x[:, None, :, None] for x in within_tiles(self.kinds, grid.i))
        k_lo, k_hi = (x[:, None, None, :] for x in within_tiles(self.kinds, grid.j))
        pure, answer = (q_lo == q_hi) & (k_lo == k_hi), self.table[q_lo, k_lo]
        return ~pure | answer, pure & answer

    def extent(self) -> tuple[int, int]:
        """Return the batch that the kinds were given for."""
        return self.kinds.shape[0], 1

    def check(self, n: int, m: int) -> None:
        """Every token needs its kind."""
        if self.kinds.shape[1] < max(n, m):
            fail(
                ShapeError,
                "kinds",
                f"kinds of {self.kinds.shape[1]} tokens",
                f"one for each of {max(n, m)} positions",
                "give every token its kind",
            )


def Documents(ids: Tensor | Sequence[int], key_ids: Tensor | None = None) -> Attribute:
    """Allow tokens to attend within their own document; `ids` [n] or [b, n] says which that is.

    >>> Documents([0, 0, 1]).matrix(3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    return Attribute(as_rows("ids", ids), key_ids)  # type: ignore[arg-type]


def documents_from_lengths(
    lengths: Sequence[int] | Tensor, *, cumulative: bool = False
) -> Attribute:
    """Build `Documents` from the lengths of packed documents, or from their cumulative lengths.

    >>> documents_from_lengths([2, 1]) == documents_from_lengths([0, 2, 3], cumulative=True)
    True
    """
    counts = whole_numbers("lengths", lengths)
    if cumulative:
        if counts.dim() != 1 or len(counts) < 2 or counts[0] != 0:
            fail(
                ValueRangeError,
                "lengths",
                f"{counts.tolist()}",
                "cumulative lengths that begin with 0",
                "pass [0, len_1, len_1 + len_2, ...]",
            )
        counts = counts.diff()
    if counts.dim() != 1 or counts.numel() == 0 or bool((counts < 0).any()) or counts.sum() == 0:
        fail(
            ValueRangeError,
            "lengths",
            f"{counts.tolist()}",
            "lengths of at least 0, increasing where cumulative",
            "pass the number of tokens of each document",
        )
    return Documents(torch.repeat_interleave(torch.arange(len(counts)), counts))


@value
class Padding(Support):
    """Queries attend to only keys that are real tokens; `valid` bool [m] or [b, m].

    >>> Padding(torch.tensor([True, False])).matrix(2)[0, 0].int().tolist()
    [[1, 0], [1, 0]]
    """

    valid: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "valid", as_rows("valid", self.valid, torch.bool))

    @staticmethod
    def from_lengths(lengths: Sequence[int] | Tensor, n: int, side: str = "right") -> Padding:
        """Build padding from the true length of each row of the batch.

        >>> Padding.from_lengths([1, 2], 2, side="left").valid.int().tolist()
        [[0, 1], [1, 1]]
        """
        counts = whole_numbers("lengths", lengths)
        if (
            counts.dim() != 1
            or counts.numel() == 0
            or int(counts.max()) > n
            or int(counts.min()) < 0
        ):
            fail(
                ValueRangeError,
                "lengths",
                f"{counts.tolist()}",
                f"one length of 0 to {n} for each row of the batch",
                "pass the true lengths and the padded length n",
            )
        if side not in ("left", "right"):
            fail(RuleError, "side", repr(side), "'left' or 'right'", "say where the padding is")
        place = torch.arange(n)
        real = place < counts[:, None] if side == "right" else place >= n - counts[:, None]
        return Padding(real)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow real keys."""
        return look_up(self.valid, b, j) & (i == i) & (j < self.valid.shape[1])

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Look at the keys of the tile."""
        every, some = within_tiles(self.valid.int(), grid.j)
        beyond = grid.j_hi >= self.valid.shape[1]
        return (some > 0)[:, None, None], (every > 0)[:, None, None] & ~beyond

    def counted_from(self, i: int, j: int) -> Support | None:
        """Leave out earlier keys."""
        return Padding(self.valid[:, j:]) if 0 <= j < self.valid.shape[1] else None

    def extent(self) -> tuple[int, int]:
        """Return the batch that the padding was given for."""
        return self.valid.shape[0], 1

    @property
    def moves(self) -> bool:
        """The position of the query is not asked for."""
        return False

    def check(self, n: int, m: int) -> None:
        """Every key must be real or not."""
        if self.valid.shape[1] < m:
            fail(
                ShapeError,
                "valid",
                f"{self.valid.shape[1]} keys",
                f"one entry for each of {m} keys",
                "extend the padding mask with the keys",
            )


@value
class PrefixLM(Support):
    """The prefix is met by everyone, the rest causally; `prefix` is one length or one a row, [b].

    >>> PrefixLM(2).matrix(3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """

    prefix: Tensor

    def __post_init__(self) -> None:
        prefix = whole_numbers("prefix", self.prefix)
        if prefix.dim() > 1 or bool((prefix < 0).any()):
            fail(
                ValueRangeError,
                "prefix",
                f"{prefix.tolist()}",
                "lengths of at least 0, one or [b]",
                "pass how many tokens the prefix has",
            )
        object.__setattr__(self, "prefix", prefix.reshape(-1).long())

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the prefix and the past."""
        return (j < look_up(self.prefix[:, None], b, i * 0)) | (j <= i)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compare the tile with the prefix and the diagonal."""
        prefix = self.prefix.to(grid.b.device).view(-1, 1, 1, 1)
        some = (grid.j_lo <= grid.i_hi) | (grid.j_lo < prefix)
        return some, (grid.j_hi <= grid.i_lo) | (grid.j_hi < prefix)

    def extent(self) -> tuple[int, int]:
        """Return the batch that the prefixes were given for."""
        return self.prefix.shape[0], 1


@value
class SharedPrefix(Support):
    """Several continuations of one prefix in a row: each attends to the prefix and its own past.

    >>> SharedPrefix(1, (1, 2)).matrix(4)[0, 0].int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    """

    prefix: int
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        need_count("prefix", self.prefix, 0)
        lengths = tuple(self.lengths) if isinstance(self.lengths, Sequence) else ()
        if not lengths:
            fail(
                RuleError,
                "lengths",
                shape_of(self.lengths),
                "the length of each continuation",
                "pass lengths=(8, 12)",
            )
        for length in lengths:
            need_count("lengths", length)
        object.__setattr__(self, "lengths", lengths)

    def _piece(self, position: Tensor) -> Tensor:
        """0 for the prefix, 1, 2, ... for the continuations."""
        ends = list(accumulate((self.prefix, *self.lengths)))
        piece = position * 0
        for end in ends[:-1]:
            piece = piece + (position >= end)
        return piece

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow the past in the prefix and in the same continuation."""
        of_key = self._piece(j)
        return (j <= i) & ((of_key == 0) | (of_key == self._piece(i)))

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Compare the pieces that the two sides of the tile touch."""
        q_lo, q_hi = self._piece(grid.i_lo), self._piece(grid.i_hi)
        k_lo, k_hi = self._piece(grid.j_lo), self._piece(grid.j_hi)
        some = (grid.j_lo <= grid.i_hi) & ((k_lo == 0) | ((k_lo <= q_hi) & (q_lo <= k_hi)))
        one = (q_lo == q_hi) & (k_lo == k_hi) & (q_lo == k_lo)
        return some, (grid.j_hi <= grid.i_lo) & ((k_hi == 0) | one)

    def horizon(self, i: int) -> Spans:
        """Return the prefix, and the continuation of query i and those after it."""
        start = self.prefix
        for length in self.lengths:
            if i < start + length:
                break
            start += length
        return Spans.of((0, self.prefix), (min(start, i), None))

    def check(self, n: int, m: int) -> None:
        """Positions must lie in the prefix or a continuation."""
        total = self.prefix + sum(self.lengths)
        if max(n, m) > total:
            fail(
                ShapeError,
                "lengths",
                f"{total} positions in all",
                f"at least {max(n, m)}",
                "make prefix and lengths add up to the sequence",
            )
