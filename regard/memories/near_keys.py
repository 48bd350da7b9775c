"""Values of every token, with keys of the first and the newest tokens only."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from regard.core.keys import Dense
from regard.core.spans import Spans
from regard.memories.base import KeyMemory
from regard.memories.ring import Ring
from regard.memories.some_keys import SomeKeys


class NearKeys(KeyMemory):
    """Values of all tokens; keys of the first `sinks` and the last `window`, as in a `Ring`.

    `near` returns the tokens with keys; `keys` has zeros for keys, which the caller replaces.

    >>> memory = NearKeys(window=3, sinks=1)
    >>> for _ in range(9):
    ...     memory.extend(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)); memory.settle()
    >>> memory.near().positions.tolist(), memory.read().v.shape
    ([[0, 6, 7, 8]], torch.Size([1, 1, 9, 2]))
    """

    def __init__(self, window: int, sinks: int = 0) -> None:
        self._keys, self._values = Ring(window, sinks), SomeKeys(heads=())

    @property
    # A property, since its parts count the tokens.
    def seen(self) -> int:  # type: ignore[override]
        """The number of tokens seen."""
        return self._values.seen

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens."""
        self._keys.extend(k, v[..., :0], keep)
        self._values.extend(k, v, keep)

    def keys(self) -> Dense:
        """Return all values, with zeros for keys."""
        return self._values.keys()

    def near(self) -> Dense:
        """Return the near keys, with their values."""
        held, v = self._keys.read(), self._values.read().v
        k, at = held.k, held.positions
        if at is None:
            return Dense(k, v, None)
        index = at.clamp(min=0)[:, None, :, None].expand(-1, v.shape[1], -1, v.shape[3])
        return Dense(k, v.gather(2, index), at)

    def forget(self, horizon: Spans) -> None:
        """Keep all values."""

    def settle(self) -> None:
        """Drop keys that have left the window."""
        self._keys.settle()
        self._values.settle()

    def crop(self, length: int) -> None:
        """Crop, while no key has been dropped."""
        self._keys.crop(length)
        self._values.crop(length)

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        self._keys.reorder(rows)
        self._values.reorder(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and positions."""
        return self._keys.nbytes + self._values.nbytes

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        return {"keys": self._keys.state(), "values": self._values.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the state of a file."""
        self._keys.restore(state["keys"])
        self._values.restore(state["values"])
