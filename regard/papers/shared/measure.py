"""What checks measure with."""

from __future__ import annotations

from torch import Tensor

from regard.bench.measuring import Largest


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference of any two entries."""
    return float((a - b).detach().abs().max())


__all__ = ["Largest", "gap"]
