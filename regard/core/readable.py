"""Whether Python may read the contents of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def can_be_read(x: Tensor) -> bool:
    """Return whether Python may branch on the contents of a tensor.

    Not on `meta`, under `vmap`, in code that is being compiled, or while a CUDA graph is being
    captured, which a read would end.

    >>> can_be_read(torch.ones(2)), can_be_read(torch.ones(2, device="meta"))
    (True, False)
    """
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return False
        x = functorch.get_unwrapped(x)
    if x.device.type == "meta":
        return False
    return x.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
