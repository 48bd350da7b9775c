"""Leaving compiled code: one break of the graph, behind which nothing is traced.

This module loads the compiler, which takes a second: import it where code is being compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@torch.compiler.disable(reason="this attention makes its rule as it runs (decision 0005)")  # type: ignore[untyped-decorator]  # as torch has it
def uncompiled(function: Callable[..., T], *args: Any, **settings: Any) -> T:
    """Call a function, and nothing that it calls, outside of the compiler.

    Left to itself the compiler would break the graph at each thing that it cannot trace, and
    compile the dozens of pieces between: planning, checks, the executor.

    >>> uncompiled(sorted, [2, 1], reverse=True)
    [2, 1]
    """
    return function(*args, **settings)
