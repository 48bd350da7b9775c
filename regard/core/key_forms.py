"""Keys in few bits, with another count for each head, and with summaries beside them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.codes import BITS, Codes
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.keys import STEP, At, Dense, Keys, is_full, written
from regard.core.paged_keys import Paged
from regard.core.rule import Rule


class _StoredAttribute:
    """An attribute stored in the instance, which replaces a computed one of the base class."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        raise AttributeError(self.name)


@dataclass(frozen=True, eq=False, repr=False)
class Packed(Keys):
    """Keys packed by channel and values by token in few bits, and an exact `tail` of the newest.

    `tail` is k [b, g, c, d] and v [b, g, c, e], of the type that all numbers are read as.

    >>> from regard.core.codes import pack
    >>> codes = pack(torch.tensor([[[[0, 1, 2], [3, 4, 5]]]], dtype=torch.uint8), 4)
    >>> low = torch.ones(1, 1, 2, 1)
    >>> half = Codes(codes, low, low, 4, 3)
    >>> keys = Packed(half, half, (torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3)))
    >>> keys.m, keys.dense().k[0, 0].tolist()
    (3, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [0.0, 0.0, 0.0]])
    """

    form: ClassVar[str] = "packed"
    k: Codes
    v: Codes
    tail: tuple[Tensor, Tensor]
    at: At = None

    def __post_init__(self) -> None:
        b, g, m = self.k.codes.shape[:3]
        for name, x, exact in (("k", self.k, self.tail[0]), ("v", self.v, self.tail[1])):
            if x.bits not in BITS or x.codes.dtype != torch.uint8:
                fail(
                    ValueRangeError, name, f"{x.bits} bits in {x.codes.dtype}", f"{BITS} in uint8",
                    "pack codes by regard.core.codes.pack",
                )  # fmt: skip
            wide = -(-x.size * x.bits // 8)
            if x.codes.shape != (b, g, m, wide) or not m or x.low.shape != x.step.shape:
                fail(
                    ShapeError, name, f"{list(x.codes.shape)} of size {x.size}",
                    f"[{b}, {g}, {m}, {wide}], and low and step of one shape", "pack both alike",
                )  # fmt: skip
            c = self.tail[0].shape[2]
            if exact.shape != (b, g, c, x.size):
                fail(
                    ShapeError, "tail", shape_of(exact), f"[{b}, {g}, {c}, {x.size}]",
                    "give keys and values",
                )  # fmt: skip
            if x.low.shape[2] not in (0, m) and m % x.low.shape[2]:
                fail(
                    ShapeError, f"{name}.low", shape_of(x.low), f"[{b}, {g}, {m} / group, ...]",
                    "pack whole groups",
                )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes (b, g, m, d, e), the tail included."""
        b, g, m = self.k.codes.shape[:3]
        return b, g, m + self.tail[0].shape[2], self.k.size, self.v.size

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tail, codes, and what they stand for."""
        return *self.tail, *self.k[:3], *self.v[:3]

    @cached_property
    def full(self) -> bool:
        """Whether every slot holds a real key."""
        return is_full(self.at)

    @property
    def placed(self) -> bool:
        """Whether keys may have other positions than 0, 1, 2, ..."""
        return self.at is not None

    @cached_property
    def positions(self) -> Tensor | None:
        """Positions of the keys; None where key j is at j."""
        return written(self.at)

    def dense(self) -> Dense:
        """Write the numbers out."""
        made = []
        for codes, tail in zip((self.k, self.v), self.tail, strict=True):
            m = codes.codes.shape[2]
            if tail.requires_grad:
                made.append(torch.cat((codes.read(tail.dtype), tail), 2))
                continue
            x = tail.new_empty(*tail.shape[:2], m + tail.shape[2], tail.shape[3])
            codes.write(x[:, :, :m])
            x[:, :, m:] = tail
            made.append(x)
        return Dense(made[0], made[1], self.at)

    @property
    def kind(self) -> Hashable:
        """Bits and groups count as well."""
        k, v, x, at = self.k, self.v, self.tail[0], self.at
        b, g, m = k.codes.shape[:3]
        # Asked at every step of decoding, so written out here.
        return (
            self.form, b, g, -(-(m + x.shape[2]) // STEP), k.size, v.size, x.dtype, x.device,
            at is None or self.full, at is None, k.bits, v.bits, -(-m // max(k.low.shape[2], 1)),
            -(-m // max(v.low.shape[2], 1)),
        )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Ragged(Keys):
    """Key heads that keep different numbers of keys: (heads, their keys) for each that differ.

    >>> one, two = torch.ones(1, 1, 2, 4), torch.ones(1, 2, 3, 4)
    >>> keys = Ragged((((1,), Dense(one, one)), ((0, 2), Dense(two, two))))
    >>> keys.count, keys.dense().positions[0].tolist()
    (2.6666666666666665, [[0, 1, 2], [0, 1, -1], [0, 1, 2]])
    """

    form: ClassVar[str] = "ragged"
    parts: tuple[tuple[tuple[int, ...], Keys], ...]
    # Written by __post_init__, in place of the properties of other forms.
    shape: ClassVar[Any] = _StoredAttribute("shape")
    full: ClassVar[Any] = _StoredAttribute("full")
    dense_full: ClassVar[Any] = _StoredAttribute("dense_full")
    count: ClassVar[Any] = _StoredAttribute("count")
    dtype: ClassVar[Any] = _StoredAttribute("dtype")
    device: ClassVar[Any] = _StoredAttribute("device")
    kind: ClassVar[Any] = _StoredAttribute("kind")
    # Whether every part is of tensors.
    all_dense: ClassVar[Any] = _StoredAttribute("all_dense")

    def __post_init__(self) -> None:
        # One loop computes every attribute: each decoding step builds a new instance.
        named: list[int] = []
        kinds: list[Hashable] = []
        held, longest, alike, full, dense = 0.0, 0, True, True, True
        for heads, keys in self.parts:
            if type(keys) is Dense:
                (b, g, m, d), e = keys.k.shape, keys.v.shape[3]
            else:
                b, g, m, d, e = keys.shape
            if g != len(heads):
                fail(
                    ShapeError, "parts", f"{g} heads", f"{len(heads)}, as are named",
                    "name the heads of each part",
                )  # fmt: skip
            named += heads
            dense = dense and type(keys) is Dense
            alike = alike and (not longest or m == longest)
            at = keys.at if type(keys) is Dense else 0
            longest, own = max(longest, m), at is None or getattr(at, "full", None)
            full = full and bool(keys.full if own is None else own)
            held += g * (m if type(keys) is Dense else keys.count)
            kinds.append((heads, keys.form, -(-m // STEP)))
        named.sort()
        if not named or named != list(range(len(named))):
            fail(ShapeError, "parts", f"heads {named}", "each head once", "name heads from 0 on")
        first = self.parts[0][1].tensors()[0]
        self.__dict__.update(
            shape=(b, len(named), longest, d, e), full=full, dense_full=full and alike,
            count=held / len(named), dtype=first.dtype, device=first.device, all_dense=dense,
        )  # fmt: skip
        self.__dict__["kind"] = (
            self.form, b, len(named), d, e, first.dtype, first.device, full, full and alike,
            *kinds,
        )  # fmt: skip

    def tensors(self) -> tuple[Tensor, ...]:
        """Return those of all parts."""
        return tuple(x for _, keys in self.parts for x in keys.tensors())

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(keys.nbytes for _, keys in self.parts)

    @property
    def positions(self) -> Tensor | None:
        """Positions [b, g, m], -1 behind the end of shorter heads; None where key j is at j."""
        b, g, m, _, _ = self.shape
        if all(keys.positions is None and keys.m == m for _, keys in self.parts):
            return None
        made = torch.full((b, g, m), -1, device=self.device)
        for heads, keys in self.parts:
            at = keys.positions
            at = torch.arange(keys.m, device=self.device) if at is None else at
            made[:, list(heads), : keys.m] = (at[:, None] if at.dim() == 2 else at).long()
        return made

    def dense(self) -> Dense:
        """Fill shorter heads up with empty slots."""
        return Dense(self._filled("k"), self._filled("v"), self.positions)

    def _filled(self, which: str) -> Tensor:
        found = [(heads, getattr(keys.dense(), which)) for heads, keys in self.parts]
        b, g, m, _, _ = self.shape
        made: Tensor = found[0][1].new_zeros(b, g, m, found[0][1].shape[3])
        for heads, x in found:
            if x.requires_grad:
                short = torch.nn.functional.pad(x, (0, 0, 0, m - x.shape[2]))
                made = made.index_copy(1, torch.tensor(heads, device=x.device), short)
            else:
                made[:, list(heads), : x.shape[2]] = x
        filled: Tensor = made
        return filled


@dataclass(frozen=True, eq=False, repr=False)
class Summary(Keys):
    """Keys with a row of numbers for each page of them: bounds, means, landmarks.

    `rows` [b, g, pages, c] sums up pages of `page` keys, all but the newest, which may not be full.
    A selecting policy reads `rows`, and passes on `take(slots)`.

    >>> k = torch.randn(1, 2, 8, 4)
    >>> Summary(Dense(k, k), k.unflatten(2, (2, 4)).mean(3), 4).rows.shape
    torch.Size([1, 2, 2, 4])
    """

    form: ClassVar[str] = "summary"
    keys: Keys
    rows: Tensor
    page: int

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes of the keys."""
        return self.keys.shape

    def tensors(self) -> tuple[Tensor, ...]:
        """Return those of the keys, and the rows."""
        return *self.keys.tensors(), self.rows

    @property
    def full(self) -> bool:
        """Whether every slot of the keys is real."""
        return self.keys.full

    @property
    def placed(self) -> bool:
        """As the keys."""
        return self.keys.placed

    @property
    def positions(self) -> Tensor | None:
        """Positions of the keys."""
        return self.keys.positions

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient will be asked of the keys."""
        return self.keys.requires_grad

    @property
    def dense_bytes(self) -> int:
        """What the keys alone write."""
        return self.keys.dense_bytes

    def dense(self) -> Dense:
        """Return the keys alone."""
        return self.keys.dense()

    def simplest(self, rule: Rule) -> Keys:
        """Leave the rows: attention does not read them."""
        return self.keys.simplest(rule)

    def take(self, slots: Tensor, *, full: bool | None = None) -> Keys:
        """Return some of the keys alone."""
        return self.keys.take(slots, full=full)


__all__ = ["Packed", "Paged", "Ragged", "Summary"]
