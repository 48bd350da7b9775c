"""Autocast, on any device: which dtype it gives, and how to be without it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def has_autocast(device: torch.device) -> bool:
    """Return whether autocast is on for a kind of device; kinds like `meta` have none.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     has_autocast(torch.device("cpu")), has_autocast(torch.device("meta"))
    (True, False)
    """
    if not torch._C._is_any_autocast_enabled():  # a fifth of the time of asking for a kind
        return False
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off for a kind of device.

    >>> x = torch.ones(2, 2)
    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(x.device):
    ...     (x @ x).dtype
    torch.float32
    """
    return torch.autocast(device.type, enabled=False) if has_autocast(device) else nullcontext()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that a linear map of x has: autocast's where it is on, else that of x.

    Autocast leaves float64 as it is.

    >>> x = torch.zeros(2, 3)
    >>> autocast_dtype(x)
    torch.float32
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     autocast_dtype(x), autocast_dtype(x.double())
    (torch.bfloat16, torch.float64)
    """
    narrowed = x.is_floating_point() and x.dtype != torch.float64
    if not narrowed or not has_autocast(x.device):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def autocast_alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert tensors to what autocast computes products in; unchanged where it is off.

    Beside the output of a linear map, which autocast made bfloat16 or float16, a parameter or a
    normalized tensor is still float32: attention needs q, k and v of one dtype.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     q, k = autocast_alike(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16))
    >>> q.dtype, k.dtype
    (torch.bfloat16, torch.bfloat16)
    """
    return tuple(x.to(autocast_dtype(x)) for x in tensors)
