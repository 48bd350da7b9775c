"""Values of every head, and keys of some: for heads or layers that use other heads' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.keys import Dense
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, extended_positions, need_keys
from regard.memories.kept import need_crop
from regard.memories.stores import Plain


class SomeKeys(KeyMemory):
    """Values of all heads, and keys of `heads` only (all, until `keep_keys_of`).

    `keys` has zeros where keys are not kept, which the caller replaces.

    >>> memory = SomeKeys(heads=())
    >>> memory.extend(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))
    >>> memory.nbytes == 2 * 5 * 4 * 4, float(memory.read().k.sum())
    (True, 0.0)
    """

    def __init__(self, heads: Sequence[int] | None = None) -> None:
        # Heads [b or 1, c] whose keys are kept, by row; a row that keeps fewer repeats one.
        self.heads = None if heads is None else torch.tensor([list(heads)], dtype=torch.long)
        # The head whose weights each query head uses, [b, h], once a policy has set it.
        self.leaders: Tensor | None = None
        self.seen = 0
        self._k, self._v = Plain(), Plain()
        self._at: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens."""
        need_keys(k, v, keep)
        self._at = extended_positions(self._at, self.seen, k, keep, torch.int32)
        if self.heads is None or self.heads.shape[1]:
            self._k.append(k if self.heads is None else k.gather(1, _index(self.heads, k)))
        self._v.append(v)
        self.seen += k.shape[2]

    def keep_keys_of(self, heads: Tensor) -> None:
        """Drop the keys of all heads but these, [b, c], for good; a row may name one twice."""
        if self.heads is not None:
            fail(
                ValueRangeError, "heads", heads.tolist(), f"{self.heads.tolist()}, as before",
                "call it once: dropped keys cannot come back",
            )  # fmt: skip
        k = self._k.read()
        kept = k.gather(1, _index(heads, k))
        self._k, self.heads = Plain(), heads
        self._k.append(kept)

    def keys(self) -> Dense:
        """Return values, and keys with zeros where none are kept."""
        v = self._v.read()
        at = None if self._at is None else self._at.long()
        if self.heads is None:
            return Dense(self._k.read(), v, at)
        if not self.heads.shape[1]:
            return Dense(v.new_zeros(()).expand(v.shape), v, at)
        found = self._k.read()
        k = found.new_zeros(*v.shape[:3], found.shape[3])
        return Dense(k.scatter_(1, _index(self.heads, found), found), v, at)

    def forget(self, horizon: Spans) -> None:
        """Keep all."""

    def settle(self) -> None:
        """Release unused room of the tensors."""
        self._k.settle()
        self._v.settle()

    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens."""
        need_crop(length, self.seen, 0)
        self._k.crop(length)
        self._v.crop(length)
        self._at = None if self._at is None else self._at[:, :length]
        self.seen = length

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        self._k.reorder(rows)
        self._v.reorder(rows)
        if self.leaders is not None:
            self.leaders = take_batch(self.leaders, rows)
        if self.heads is not None and len(self.heads) > 1:
            self.heads = take_batch(self.heads, rows)
        self._at = None if self._at is None else take_batch(self._at, rows)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, positions, heads and leaders."""
        tables = [x for x in (self._at, self.leaders, self.heads) if x is not None]
        return self._k.nbytes + self._v.nbytes + sum(x.untyped_storage().nbytes() for x in tables)

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        return {
            "heads": self.heads, "leaders": self.leaders,
            "seen": self.seen, "k": self._k.state(), "v": self._v.state(), "at": self._at,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        self.heads, self.leaders = state["heads"], state["leaders"]
        self.seen, self._at = state["seen"], state["at"]
        self._k.restore(state["k"])
        self._v.restore(state["v"])


def _index(heads: Tensor, x: Tensor) -> Tensor:
    """Index of heads [b or 1, c] along axis 1 of x [b, g, m, d]."""
    return heads.to(x.device)[:, :, None, None].expand(len(x), -1, x.shape[2], x.shape[3])
