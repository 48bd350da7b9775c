"""Values of every head, and keys of some: for heads or layers that use the weights of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.heads import gather_heads, take_batch
from regard.core.keys import Dense
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, need_keys
from regard.memories.kept import need_crop
from regard.memories.stores import Plain


class SomeKeys(KeyMemory):
    """Values of all heads, and keys of `heads` alone (all, until they are named).

    `keys` gives zeros where keys are not kept: who shares weights puts others in their place.

    >>> memory = SomeKeys(heads=())
    >>> memory.extend(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))
    >>> memory.nbytes == 2 * 5 * 4 * 4, float(memory.read().k.sum())
    (True, 0.0)
    """

    def __init__(self, heads: Sequence[int] | None = None) -> None:
        self.heads = None if heads is None else tuple(heads)
        # The head that each query head follows, once somebody has found out.
        self.leaders: Tensor | None = None
        self.seen = 0
        self._k, self._v = Plain(), Plain()
        self._at: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens."""
        need_keys(k, v, keep)
        b, n = k.shape[0], k.shape[2]
        if (keep is not None and not bool(keep.all())) or self._at is not None:
            old = torch.arange(self.seen, dtype=torch.int32, device=k.device).expand(b, -1)
            new = torch.arange(self.seen, self.seen + n, dtype=torch.int32, device=k.device)
            new = new.expand(b, n) if keep is None else torch.where(keep, new, -1)
            self._at = torch.cat((old if self._at is None else self._at, new), 1)
        if self.heads is None or self.heads:
            self._k.append(k if self.heads is None else gather_heads(k, self.heads))
        self._v.append(v)
        self.seen += n

    def keep_keys_of(self, heads: Sequence[int]) -> None:
        """Drop the keys of all other heads, for good."""
        heads = tuple(heads)
        held = tuple(range(self._v.read().shape[1])) if self.heads is None else self.heads
        if heads == held:
            return
        if not set(heads) <= set(held):
            fail(ValueRangeError, "heads", heads, f"some of {held}", "keys that are gone are gone")
        kept = gather_heads(self._k.read(), [held.index(h) for h in heads]).clone()
        self._k, self.heads = Plain(), heads
        self._k.append(kept)

    def keys(self) -> Dense:
        """Give keys, with zeros where there are none, and values."""
        v = self._v.read()
        at = None if self._at is None else self._at.long()
        if self.heads is None:
            return Dense(self._k.read(), v, at)
        if not self.heads:
            return Dense(v.new_zeros(()).expand(v.shape), v, at)
        found = self._k.read()
        k = found.new_zeros(*v.shape[:3], found.shape[3])
        k[:, list(self.heads)] = found
        return Dense(k, v, at)

    def forget(self, horizon: Spans) -> None:
        """Keep all."""

    def settle(self) -> None:
        """Let the tensors fit."""
        self._k.settle()
        self._v.settle()

    def crop(self, length: int) -> None:
        """Go back to when `length` tokens had been seen."""
        need_crop(length, self.seen, 0)
        self._k.crop(length)
        self._v.crop(length)
        self._at = None if self._at is None else self._at[:, :length]
        self.seen = length

    def reorder(self, rows: Tensor) -> None:
        """Take rows of the batch."""
        self._k.reorder(rows)
        self._v.reorder(rows)
        self._at = None if self._at is None else take_batch(self._at, rows)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, positions and leaders."""
        tables = [x for x in (self._at, self.leaders) if x is not None]
        return self._k.nbytes + self._v.nbytes + sum(x.untyped_storage().nbytes() for x in tables)

    def state(self) -> dict[str, Any]:
        """Give what a file must hold."""
        return {
            "heads": None if self.heads is None else list(self.heads), "leaders": self.leaders,
            "seen": self.seen, "k": self._k.state(), "v": self._v.state(), "at": self._at,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Take what a file held."""
        self.heads = None if state["heads"] is None else tuple(state["heads"])
        self.leaders, self.seen, self._at = state["leaders"], state["seen"], state["at"]
        self._k.restore(state["k"])
        self._v.restore(state["v"])


__all__ = ["SomeKeys"]
