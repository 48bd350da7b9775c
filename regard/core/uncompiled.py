"""Leaving compiled code: one break of the graph, behind which nothing is traced.

This module loads the compiler, which takes a second: import it where code is being compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
# What the compiler says where it may not break the graph.
WHY = (
    "this attention cannot be captured: it makes its rule as it runs, or takes positions or "
    "dropout (decision 0005). Fix: make the regard.Rule outside of the compiled function and pass "
    "it in, or compile without fullgraph=True"
)


@torch.compiler.disable(reason=WHY)  # type: ignore[untyped-decorator]  # as torch has it
def uncompiled(function: Callable[..., T], *args: Any, **settings: Any) -> T:
    """Call a function, and nothing that it calls, outside of the compiler.

    Left to itself the compiler would break the graph at each thing that it cannot trace, and
    compile the dozens of pieces between: planning, checks, the executor.

    >>> uncompiled(sorted, [2, 1], reverse=True)
    [2, 1]
    """
    return function(*args, **settings)
