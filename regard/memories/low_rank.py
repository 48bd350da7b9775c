"""Tokens as coefficients on a low-rank basis of the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.heads import take_batch
from regard.memories.stores import TokenStore
from regard.run.counting import multiply


class LowRank(TokenStore):
    """x as coefficients [b, h, m, rank] on a basis [b, h, rank, d].

    The basis is the top right singular vectors of the tokens at the first `settle` with more than
    `rank + residual` of them; later tokens are projected on it. The newest `residual`
    tokens stay exact.

    >>> store = LowRank(2, residual=0)
    >>> x = torch.randn(1, 1, 30, 2) @ torch.randn(2, 8)
    >>> store.append(x); store.settle()
    >>> torch.allclose(store.read(), x, atol=1e-4), store.nbytes
    (True, 304)
    """

    def __init__(self, rank: int, residual: int = 32) -> None:
        if rank < 1 or residual < 0:
            fail(
                ValueRangeError, "rank, residual", (rank, residual), "at least 1 and 0",
                "pass rank=16",
            )  # fmt: skip
        self.rank, self.residual = rank, residual
        self._basis: Tensor | None = None
        self._parts: Tensor | None = None
        self._tail: Tensor | None = None

    @property
    def _projected(self) -> int:
        return 0 if self._parts is None else self._parts.shape[2]

    def __len__(self) -> int:
        return self._projected + (0 if self._tail is None else self._tail.shape[2])

    def append(self, x: Tensor) -> None:
        """Append x [b, h, n, d], exact until `settle`."""
        self._tail = x if self._tail is None else torch.cat((self._tail, x), 2)

    def settle(self) -> None:
        """Project all but the newest tokens."""
        if self._tail is None or self.rank >= self._tail.shape[3]:
            return
        n = self._tail.shape[2] - self.residual
        if n < (self.rank + 1 if self._basis is None else max(self.residual // 2, 1)):
            return
        old, self._tail = self._tail[:, :, :n], self._tail[:, :, n:].clone()
        if self._basis is None:
            # The right singular vectors, from the d x d products of channels.
            wide = old.double()
            _, vectors = torch.linalg.eigh(multiply(wide.transpose(2, 3), wide))
            self._basis = vectors[..., -self.rank :].transpose(2, 3).to(old.dtype).contiguous()
        new = multiply(old, self._basis.transpose(2, 3))
        self._parts = new if self._parts is None else torch.cat((self._parts, new), 2)

    def read(self) -> Tensor:
        """Reconstruct all tokens."""
        if self._tail is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        if self._parts is None or self._basis is None:
            return self._tail
        return torch.cat((multiply(self._parts, self._basis), self._tail), 2)

    def empty(self) -> LowRank:
        """Return another with the same settings."""
        return LowRank(self.rank, self.residual)

    def crop(self, m: int) -> None:
        """Drop the end."""
        if m < self._projected and self._parts is not None:
            self._parts = self._parts[:, :, :m].clone()
        if self._tail is not None:
            self._tail = self._tail[:, :, : max(m - self._projected, 0)]

    def reorder(self, rows: Tensor) -> None:
        """Select rows."""
        held = (self._basis, self._parts, self._tail)
        self._basis, self._parts, self._tail = (
            None if x is None else take_batch(x, rows) for x in held
        )

    @property
    def nbytes(self) -> int:
        """Bytes of basis, coefficients and exact tokens."""
        held = (self._basis, self._parts, self._tail)
        return sum(x.untyped_storage().nbytes() for x in held if x is not None)

    def state(self) -> dict[str, Any]:
        """Return basis, coefficients and exact tokens."""
        return {"basis": self._basis, "parts": self._parts, "tail": self._tail}

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        self._basis, self._parts, self._tail = (state[x] for x in ("basis", "parts", "tail"))
