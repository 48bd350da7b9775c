"""Loops and the numbers that kernels share, on a GPU and in the interpreter alike."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from regard.run.triton.availability import interpreting

# Exponentials are cheapest to the base 2: scores come multiplied by log2(e).
LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)
# A score below every score, and one below that for pairs that may not meet: both finite, so that
# their differences are numbers and a row without keys needs no care.
START = tl.constexpr(-1e30)
REMOVED = tl.constexpr(-2e30)


def _counted(*bounds: Any) -> range:
    """Count in the interpreter, whose own range cannot take tensors since numpy 2.4."""
    return range(*(int(x.handle.data.item() if hasattr(x, "handle") else x) for x in bounds))


# On a GPU only such loops (and no `while`) fetch the next tile during the work on this one.
steps: Any = _counted if interpreting() else tl.range
