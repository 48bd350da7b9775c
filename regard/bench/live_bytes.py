"""Count the bytes of all tensors that are alive at once."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


class Live(TorchDispatchMode):
    """Keep the most bytes of tensors that were alive at once, of those made while it is open.

    A count of this thread, and so the same on every machine and in every run. What a kernel uses
    inside is not seen.

    >>> import torch
    >>> with Live() as seen:
    ...     x = torch.ones(8)
    ...     x = x + 1  # while the first is there
    >>> seen.peak
    64
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the base has no types
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count the storages that it made."""
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if storage not in self._known:
            self._known[storage] = None
            size = storage.nbytes()
            weakref.finalize(storage, self._gone, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size
