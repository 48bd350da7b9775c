"""A layer that keeps nothing, and reads what another layer keeps."""

from __future__ import annotations

from torch import Tensor

from regard.core.keys import Keys
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, need_keys


class Shared(KeyMemory):
    """The keys and values of an earlier layer's memory.

    What the layer computes itself is dropped. The earlier layer must have been extended first, as
    it is in every forward.

    >>> from regard.memories.kept import Kept
    >>> first = Kept(); second = Shared(first)
    >>> for memory in (first, second):
    ...     memory.extend(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    >>> second.read().k.shape, second.nbytes
    (torch.Size([1, 1, 3, 2]), 0)
    """

    def __init__(self, source: KeyMemory) -> None:
        self.source = source
        self.seen = source.seen

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Count the tokens."""
        need_keys(k, v, keep)
        self.seen += k.shape[2]

    def keys(self) -> Keys:
        """Return those of the source."""
        return self.source.keys()

    def forget(self, horizon: Spans) -> None:
        """Leave that to the source."""

    def crop(self, length: int) -> None:
        """Count back; the source goes back by itself."""
        self.seen = length

    def reorder(self, rows: Tensor) -> None:
        """Leave that to the source."""

    @property
    def nbytes(self) -> int:
        """Nothing of its own."""
        return 0

    def state(self) -> dict[str, int]:
        """Return the count."""
        return {"seen": self.seen}

    def restore(self, state: dict[str, int]) -> None:
        """Load the count."""
        self.seen = state["seen"]
