"""The memory of a layer that reads another layer's keys."""

from __future__ import annotations

from torch import Tensor

from regard.core.keys import Keys
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, need_keys


class Shared(KeyMemory):
    """The keys and values of an earlier layer's memory.

    The layer's own keys are dropped. The earlier layer must be extended first, as it is in every
    forward.

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
        """Return the keys of the source."""
        return self.source.keys()

    def forget(self, horizon: Spans) -> None:
        """Do nothing: the source does it."""

    def crop(self, length: int) -> None:
        """Set the count; the source is cropped itself."""
        self.seen = length

    def reorder(self, rows: Tensor) -> None:
        """Do nothing: the source does it."""

    @property
    def nbytes(self) -> int:
        """Zero: it holds nothing."""
        return 0

    def state(self) -> dict[str, int]:
        """Return the count."""
        return {"seen": self.seen}

    def restore(self, state: dict[str, int]) -> None:
        """Load the count."""
        self.seen = state["seen"]
