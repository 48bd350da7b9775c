"""Unrotated keys, to which rotary positions are applied when they are read."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from regard.core.errors import ShapeError, fail
from regard.core.heads import take_batch
from regard.core.keys import Dense
from regard.memories.kept import Kept
from regard.memories.stores import Plain, StoreKind


class Turning(Protocol):
    """Apply positions [n] or [b, n] to keys x [b, g, n, d], and undo them."""

    def turn(self, x: Tensor, at: Tensor) -> Tensor: ...  # noqa: D102
    def back(self, x: Tensor, at: Tensor) -> Tensor: ...  # noqa: D102


class Bare(Kept):
    """Every key without its position: `keys` applies the positions again, `bare` does not.

    Keys arrive rotated, at their index unless `stand` sets other positions. Methods that renumber
    tokens (chunks, blocks, parallel contexts) read them bare.

    >>> from regard.core.rotary import Rotation, turned
    >>> class Turn:
    ...     def turn(self, x, at): return turned(x, Rotation().angles(at, 4))
    ...     def back(self, x, at): return turned(x, Rotation().angles(-at, 4))
    >>> memory, k = Bare(Turn()), torch.randn(1, 1, 6, 4)
    >>> memory.extend(Turn().turn(k, torch.arange(6)), k)
    >>> torch.allclose(memory.bare().k, k, atol=1e-5)
    True
    """

    def __init__(self, turning: Turning, k: StoreKind = Plain, v: StoreKind | None = None) -> None:
        super().__init__(k, v)
        self.turning = turning
        self._next: Tensor | None = None
        # Positions of tokens, int32 [b, seen]; None while they equal the index.
        self._where: Tensor | None = None

    def stand(self, at: Tensor | None) -> None:
        """Set the positions of the tokens of the next `extend`, [n], [1, n] or [b, n]."""
        self._next = at

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Rotate keys back to no position, and append them."""
        b, n = k.shape[0], k.shape[2]
        numbers = torch.arange(self.seen, self.seen + n, device=k.device)
        at, self._next = numbers if self._next is None else self._next, None
        if at.shape not in ((n,), (1, n), (b, n)):
            fail(
                ShapeError,
                "at",
                list(at.shape),
                f"[{n}] or [{b}, {n}]",
                "pass all positions",
            )
        if self._where is None and not bool((at == numbers).all()):
            self._where = torch.arange(self.seen, dtype=torch.int32).to(k.device).expand(b, -1)
        if self._where is not None:
            new = at.to(torch.int32).expand(b, n)
            self._where = torch.cat((self._where, new), 1)
        super().extend(self.turning.back(k, at), v, keep)

    @property
    def where(self) -> Tensor:
        """Positions of tokens, [m] or [b, m]."""
        if self._where is None:
            return torch.arange(self.seen, device=self.bare().k.device)
        return self._where

    @property
    def in_order(self) -> bool:
        """Whether every token has its index as position, and none is padding."""
        return self._where is None and self.bare().positions is None

    def bare(self) -> Dense:
        """Return the keys without positions."""
        return super().keys().dense()

    def keys(self) -> Dense:
        """Return the keys with their positions applied."""
        read = self.bare()
        return read.replace(k=self.turning.turn(read.k, self.where))

    def choose(self, slots: Tensor) -> None:
        """Raise: the position of a key is its slot."""
        super(Kept, self).choose(slots)

    def forget(self, horizon: Any) -> None:
        """Keep all keys."""

    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens."""
        super().crop(length)
        self._where = None if self._where is None else self._where[:, :length]

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        super().reorder(rows)
        self._where = None if self._where is None else take_batch(self._where, rows)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and positions."""
        where = 0 if self._where is None else self._where.untyped_storage().nbytes()
        return super().nbytes + where

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        return {**super().state(), "where": self._where}

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        super().restore(state)
        self._where = state["where"]
