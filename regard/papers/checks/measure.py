"""What checks measure with."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference of any two entries."""
    return float((a - b).detach().abs().max())


class Largest(TorchDispatchMode):
    """Keep the size in bytes of the largest tensor that any operation returns.

    A count, and so the same on every machine. What a kernel uses inside is not seen.
    """

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and look at what it returns."""
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.numel() * one.element_size())
        return made
