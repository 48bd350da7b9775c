"""Keys: what a call may attend to, however it is stored.

A `Keys` is an immutable value with one meaning, `dense()`: keys [b, g, m, d], values [b, g, m, e]
and their positions. Forms differ in how the same is stored: as tensors (`Dense`), as some slots of
other keys (`Slots`), in pages, in few bits, with another count for each head (`key_forms`).
Executors say which forms they read as they are; what none of them reads is made dense.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.heads import as_rows, take_both
from regard.core.key_positions import At, Later, Positions, is_full, written
from regard.core.rule import Rule

# Plans distinguish numbers of keys in steps of this, so that decoding is not planned at each token.
STEP = 128


class Keys(ABC):
    """Keys and values of one call, in some form; nothing in them changes.

    `positions` are [m], [b, m] or [b, g, m] with -1 at empty slots, or None where key j is at j.
    """

    form: ClassVar[str]
    # Positions of the queries of a call over these keys, where the keys know them.
    q_positions: Tensor | None = None
    # Whether `dense` takes messages that every rank must join: no plan makes them dense unasked.
    collective: ClassVar[bool] = False

    @abstractmethod
    def dense(self) -> Dense:
        """Return the same as tensors: k [b, g, m, d], v [b, g, m, e], positions."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes (b, g, m, d, e); m is that of `dense`, empty slots included."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return every tensor that is stored, keys first."""

    @property
    @abstractmethod
    def positions(self) -> Tensor | None:
        """Positions of the slots of `dense`."""

    @property
    @abstractmethod
    def full(self) -> bool:
        """Whether every slot holds a real key, as far as can be told without waiting."""

    @property
    def dense_full(self) -> bool:
        """Whether no slot of `dense` is empty: shorter rows and heads are filled up there."""
        return self.full

    @property
    def placed(self) -> bool:
        """Whether keys may have other positions than 0, 1, 2, ..."""
        return True

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers that `dense` returns."""
        return self.tensors()[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the keys."""
        return self.tensors()[0].device

    @property
    def b(self) -> int:
        """Rows of the batch."""
        return self.shape[0]

    @property
    def g(self) -> int:
        """Key heads."""
        return self.shape[1]

    @property
    def m(self) -> int:
        """Keys of each head, empty slots included."""
        return self.shape[2]

    @property
    def d(self) -> int:
        """Head size of keys."""
        return self.shape[3]

    @property
    def e(self) -> int:
        """Head size of values."""
        return self.shape[4]

    @property
    def count(self) -> float:
        """Slots that a key head holds, on average."""
        return float(self.m)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.nbytes for x in self.tensors())

    @property
    def dense_bytes(self) -> int:
        """Bytes that `dense` writes: 0 where keys and values are tensors already."""
        b, g, m, d, e = self.shape
        return b * g * m * (d + e) * self.dtype.itemsize

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient will be asked of keys or values."""
        return any(x.requires_grad for x in self.tensors())

    @property
    def kind(self) -> Hashable:
        """What a plan may depend on: the form, sizes (m in steps), types, devices."""
        b, g, m, d, e = self.shape
        return (
            self.form, b, g, -(-m // STEP), d, e, self.dtype, self.device, self.full,
            self.dense_full, self.placed,
        )  # fmt: skip

    def simplest(self, rule: Rule) -> Keys:
        """Return keys of a simpler form that mean the same to a rule; nothing is copied."""
        return self

    def take(self, slots: Tensor, *, full: bool | None = None) -> Keys:
        """Return the keys of slots [b, g, c] of `dense` alone, -1 for none; nothing is copied.

        `full` says that no slot is -1 or empty, where that is known.

        >>> k = torch.randn(1, 2, 9, 4)
        >>> Dense(k, k).take(torch.tensor([[[0, 3], [8, -1]]])).dense().positions.tolist()
        [[[0, 3], [8, -1]]]
        """
        return Slots(self, slots, full)

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copy keys and values of slots [b, g, c] of `dense`: [b, g, c, d] and [b, g, c, e].

        >>> k = torch.arange(3.0).view(1, 1, 3, 1)
        >>> Dense(k, k + 5).gather(torch.tensor([[[2, 0]]]))[1].flatten().tolist()
        [7.0, 5.0]
        """
        whole = self.dense()
        return take_both(whole.k, whole.v, slots)

    def since(self, first: int) -> Tensor:
        """Return the keys of slots `first` and on of `dense`: k [b, g, m - first, d].

        >>> Dense(torch.ones(1, 2, 9, 4), torch.ones(1, 2, 9, 4)).since(7).shape
        torch.Size([1, 2, 2, 4])
        """
        return self.dense().k[:, :, first:]

    def __repr__(self) -> str:
        b, g, m, d, e = self.shape
        return f"{type(self).__name__}(b={b}, g={g}, m={m}, d={d}, e={e}, {self.nbytes:,} bytes)"


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Dense(Keys):
    """Tensors k [b, g, m, d] and v [b, g, m, e]; `at` are their positions, or a rule for them.

    It unpacks as (k, v, positions).

    >>> k, v, positions = Dense(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 5))
    >>> v.shape, positions
    (torch.Size([1, 2, 3, 5]), None)
    """

    form: ClassVar[str] = "dense"
    k: Tensor
    v: Tensor
    at: At = None

    def __init__(self, k: Tensor, v: Tensor, at: At = None) -> None:
        parts = self.__dict__  # as a frozen dataclass would, in a third of the time
        parts["k"], parts["v"], parts["at"] = k, v, at

    def __iter__(self) -> Iterator[Tensor | None]:
        yield from (self.k, self.v, self.positions)

    def dense(self) -> Dense:
        """Return itself."""
        return self

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes (b, g, m, d, e)."""
        b, g, m, d = self.k.shape
        return b, g, m, d, self.v.shape[3]

    @property
    def m(self) -> int:
        """Keys of each head, empty slots included."""
        return self.k.shape[2]

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copy keys and values of slots [b, g, c]."""
        return take_both(self.k, self.v, slots)

    def since(self, first: int) -> Tensor:
        """Return the keys from a slot on; nothing is copied."""
        return self.k[:, :, first:]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return k and v."""
        return self.k, self.v

    @property
    def positions(self) -> Tensor | None:
        """Positions of the keys; None where key j is at j."""
        at = self.at
        return at if at is None or type(at) is Tensor else self._written

    @cached_property
    def _written(self) -> Tensor | None:
        return written(self.at)

    @cached_property
    def full(self) -> bool:
        """Whether every slot holds a real key; off the CPU a tensor of positions is not looked at.

        >>> k = torch.ones(1, 1, 2, 4)
        >>> Dense(k, k).full, Dense(k, k, torch.tensor([[-1, 0]])).full
        (True, False)
        """
        return is_full(self.at)

    @property
    def placed(self) -> bool:
        """Whether keys may have other positions than 0, 1, 2, ..."""
        return self.at is not None

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and positions."""
        at = self.at.nbytes if isinstance(self.at, Tensor) else 0
        return self.k.nbytes + self.v.nbytes + at

    def replace(self, **changes: Any) -> Dense:
        """Return the same with some parts changed."""
        return replace(self, **changes)

    @property
    def dense_bytes(self) -> int:
        """Nothing is written."""
        return 0

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient will be asked of k or v."""
        return self.k.requires_grad or self.v.requires_grad


@dataclass(frozen=True, eq=False, repr=False)
class Slots(Keys):
    """The keys of `slots` [b, g, c] of other keys, in any order; -1 is none.

    >>> k = torch.arange(4.0).view(1, 1, 4, 1)
    >>> Slots(Dense(k, k), torch.tensor([[[3, 1]]])).dense().k.flatten().tolist()
    [1.0, 3.0]
    """

    form: ClassVar[str] = "slots"
    keys: Keys
    slots: Tensor
    # Whether every slot names a real key, where that is known.
    known_full: bool | None = None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes (b, g, c, d, e)."""
        b, g, _, d, e = self.keys.shape
        return b, g, self.slots.shape[2], d, e

    def tensors(self) -> tuple[Tensor, ...]:
        """Return those of the other keys, and the slots."""
        return *self.keys.tensors(), self.slots

    @cached_property
    def full(self) -> bool:
        """Whether every slot names a real key; off the CPU only if that was said."""
        if self.known_full is not None:
            return self.known_full
        on_cpu = self.slots.device.type == "cpu"
        return self.keys.full and on_cpu and bool((self.slots >= 0).all())

    @property
    def dtype(self) -> torch.dtype:
        """Type of the other keys."""
        return self.keys.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient will be asked of the other keys."""
        return self.keys.requires_grad

    @cached_property
    def _in_order(self) -> Tensor:
        """Slots by position, those without a key last and counted as m."""
        b, g, m, _, _ = self.keys.shape
        slots = self.slots.expand(b, g, -1)
        return torch.where(slots < 0, m, slots).long().sort(-1).values

    @property
    def positions(self) -> Tensor:
        """Positions [b, g, c] in order, -1 at the end where there is no key."""
        order, at = self._in_order, self.keys.positions
        if at is None:
            return torch.where(order < self.keys.m, order, -1)
        at = at.view(*(1,) * (3 - at.dim()), *at.shape) if at.dim() < 2 else at
        at = (at[:, None] if at.dim() == 2 else at).expand(*order.shape[:2], -1)
        found = at.gather(2, order.clamp(max=self.keys.m - 1))
        return torch.where(order < self.keys.m, found, -1)

    def dense(self) -> Dense:
        """Copy the keys in the order of their positions."""
        order, full = self._in_order, self.full
        k, v = self.keys.gather(order if full else order.clamp(max=max(self.keys.m - 1, 0)))
        return Dense(k, v, Later(lambda: self.positions, True) if full else self.positions)

    @property
    def kind(self) -> Hashable:
        """The form of the other keys counts as well, and whether they lie in rows."""
        inner, c = self.keys, -(-self.slots.shape[2] // STEP)
        if type(inner) is not Dense:
            return *super().kind, inner.kind  # type: ignore[misc]
        k, v = inner.k, inner.v
        b, g, _, d = k.shape
        rows = as_rows(k) is not None and as_rows(v) is not None
        return (
            "slots", b, g, c, d, v.shape[3], k.dtype, k.device, self.full,
            inner.at is None or inner.full, inner.at is None, rows,
        )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Unordered(Keys):
    """Tensors whose slots are not in the order of their positions, as those of a ring.

    A rule to which positions do not matter reads them as they are; `dense` puts them in order.

    >>> k = torch.arange(3.0).view(1, 1, 3, 1)
    >>> Unordered(k, k, torch.tensor([[4, 5, 3]])).dense().k.flatten().tolist()
    [2.0, 0.0, 1.0]
    """

    form: ClassVar[str] = "unordered"
    k: Tensor
    v: Tensor
    at: Tensor | Later

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes (b, g, m, d, e)."""
        b, g, m, d = self.k.shape
        return b, g, m, d, self.v.shape[3]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return k and v."""
        return self.k, self.v

    @cached_property
    def _order(self) -> tuple[Tensor, Tensor]:
        """Positions [b, m] in order, empty slots first, and the slots they are of."""
        at = written(self.at)
        assert at is not None
        found = at.long().sort(-1)
        return found.values, found.indices

    @property
    def positions(self) -> Tensor:
        """Positions [b, m] in order, -1 first."""
        return self._order[0]

    @cached_property
    def full(self) -> bool:
        """Whether every slot holds a real key."""
        return is_full(self.at)

    def dense(self) -> Dense:
        """Copy keys and values in order."""
        at, slots = self._order
        index = slots[:, None].expand(*self.k.shape[:2], -1)
        return Dense(*take_both(self.k, self.v, index), at)

    def simplest(self, rule: Rule) -> Keys:
        """Leave the order, where it does not matter."""
        return Dense(self.k, self.v) if rule.position_free and self.full else self


__all__ = [
    "STEP", "At", "Dense", "Keys", "Later", "Positions", "Slots", "Unordered", "is_full", "written",
]  # fmt: skip
