"""Dtypes under autocast: what a layer attends with, and what it returns."""

from __future__ import annotations

import torch
from torch import Tensor


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
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x.dtype
    if x.dtype == torch.float64 or not x.is_floating_point():
        return x.dtype
    return torch.get_autocast_dtype(device)


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
