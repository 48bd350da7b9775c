"""Stores of tokens: plain tensors, tensors on another device, memory-mapped files.

A store holds x [b, h, m, d], the keys or the values of some heads, and knows nothing of attention.
Memories are built of stores, so each kind (fewer bits, lower rank, a disk) works in every memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.keys import At, Dense, Keys


class TokenStore(ABC):
    """Tokens of some heads, in order of arrival."""

    # Whether `settle` may have work to do.
    loose: bool = True

    @property
    def takes(self) -> int:
        """The least number of tokens that `append` accepts at once."""
        return 1

    @abstractmethod
    def __len__(self) -> int:
        """Count the tokens held."""

    @abstractmethod
    def append(self, x: Tensor) -> None:
        """Append x [b, h, n, d]."""

    @abstractmethod
    def read(self) -> Tensor:
        """Return all tokens, [b, h, m, d]."""

    @abstractmethod
    def empty(self) -> TokenStore:
        """Build a store of this kind that holds nothing."""

    @abstractmethod
    def crop(self, m: int) -> None:
        """Keep the first m tokens."""

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Set row i of the batch to what row `rows[i]` was."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory held."""

    @property
    def file_bytes(self) -> int:
        """Bytes held in files."""
        return 0

    def settle(self) -> None:
        """Compress what no longer needs to be exact; called after attention has read it."""
        return

    def with_values(self, values: TokenStore, at: At) -> Keys:
        """Return these keys and their values at positions `at`, in the form they are stored in."""
        return Dense(self.read(), values.read(), at)

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state for a file: tensors and plain values."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""


StoreKind = Callable[[], TokenStore]


class Plain(TokenStore):
    """Tokens as they are, with a little room to grow: 1/32 of what is held, at least 8 tokens.

    >>> store = Plain()
    >>> store.append(torch.ones(1, 2, 100, 4)); store.append(torch.zeros(1, 2, 1, 4))
    >>> len(store), store.read().shape, store.nbytes
    (101, torch.Size([1, 2, 101, 4]), 3488)
    """

    def __init__(self) -> None:
        self._x: Tensor | None = None
        self._m = 0
        # Whether the tensor may be written: the first one belongs to the caller.
        self._ours = False
        self.loose = False

    def __len__(self) -> int:
        return self._m

    def append(self, x: Tensor) -> None:
        """Write after the last token, or move to a larger tensor."""
        n, held, m = x.shape[2], self._x, self._m
        if held is None:
            self._x, self._m, self._ours, self.loose = x.contiguous(), n, False, True
            return
        room = held.shape[2] >= m + n
        # A tensor made under inference mode can't be written outside of it, so it is copied.
        if not (room and self._ours) or held.is_inference() != torch.is_inference_mode_enabled():
            whole = m + n
            made = x.new_empty(*x.shape[:2], whole + max(8, whole // 32), x.shape[3])
            made[:, :, :m] = self.read()
            self._x, self._ours, held = made, True, made
        held[:, :, m : m + n] = x
        self._m = m + n

    def with_values(self, values: TokenStore, at: At) -> Keys:
        """Return views of both."""
        if type(self) is Plain and type(values) is Plain:
            k, v = self._x, values._x
            if k is not None and v is not None:
                return Dense(k[:, :, : self._m], v[:, :, : values._m], at)
        return super().with_values(values, at)

    def read(self) -> Tensor:
        """Return a view."""
        if self._x is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        return self._x[:, :, : self._m]

    def empty(self) -> Plain:
        """Return another."""
        return Plain()

    def crop(self, m: int) -> None:
        """Drop the end."""
        self._m = min(self._m, m)

    def reorder(self, rows: Tensor) -> None:
        """Select rows."""
        if self._x is not None:
            self._x, self._ours = take_batch(self.read(), rows), True

    @property
    def nbytes(self) -> int:
        """Bytes allocated, room to grow included."""
        return 0 if self._x is None else self._x.untyped_storage().nbytes()

    def settle(self) -> None:
        """Copy the tokens if they are a part of a larger tensor, to release it."""
        x, self.loose = self._x, False
        if x is not None and x.untyped_storage().nbytes() > x.nbytes:
            self._x, self._ours = x.clone(), True

    def state(self) -> dict[str, Any]:
        """Return the tokens."""
        return {"x": None if self._x is None else self.read().clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the tokens."""
        self._x, self.loose = state["x"], True
        # The tensor of a state belongs to the caller: it is copied before a write.
        self._m, self._ours = 0 if self._x is None else self._x.shape[2], False


class Hosted(Plain):
    """Tokens on another device (the host), copied back when they are read.

    >>> store = Hosted("cpu")
    >>> store.append(torch.ones(1, 1, 3, 2)); store.read().device.type
    'cpu'
    """

    def __init__(self, home: str = "cpu") -> None:
        super().__init__()
        self.home, self._device = home, torch.device(home)

    def append(self, x: Tensor) -> None:
        """Append x [b, h, n, d], copied to the other device."""
        self._device = x.device
        super().append(x.to(self.home))

    def read(self) -> Tensor:
        """Return a copy on the original device."""
        return super().read().to(self._device)

    def reorder(self, rows: Tensor) -> None:
        """Select rows, on the other device."""
        super().reorder(rows.to(self.home))

    def empty(self) -> Hosted:
        """Return another."""
        return Hosted(self.home)
