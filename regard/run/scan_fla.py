"""Scans by the Triton kernels of flash-linear-attention, an optional package.

Its layout is `[b, n, h, d]`, its decays are logarithms as ours, and it keeps its states in
float32. Written against version 0.5; only used where it is asked for (`form="fla"`).
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from regard.core.scan import ScanTokens


def why_not(tokens: ScanTokens) -> str | None:
    """Return why these kernels cannot run a call, or `None` where they can.

    >>> from regard.core.scan import prepare
    >>> x = torch.ones(1, 1, 2, 4)
    >>> why_not(prepare(x, x, x))
    'the tensors are on cpu and its kernels run on a GPU'
    """
    if tokens.q.device.type == "cpu":
        return "the tensors are on cpu and its kernels run on a GPU"
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed (pip install flash-linear-attention)"
    if tokens.dtype == torch.float64:
        return "its kernels have no float64"
    rate = tokens.log_decay
    if tokens.beta is not None:
        if tokens.dtype == torch.float32:
            return "its delta rule has no float32 (give bfloat16)"
        if rate is not None and rate.shape[-1] > 1:
            return "a delta rule with a decay per channel is not wired to it yet"
    if rate is not None and bool(torch.isinf(rate).any()):
        return "it subtracts sums of log decays, so resets (minus infinity) would give NaN"
    return None


def scan(tokens: ScanTokens, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel for this kind of scan: `out [b, h, n, e]`, memory `[b, h, d, e]`."""
    b, h, n, d = tokens.q.shape
    # The kernels read the dtype that was given; `tokens` holds float32.
    q, k, v = (_swap(x).to(tokens.dtype) for x in (tokens.q, tokens.k, tokens.v))
    shared: dict[str, Any] = {
        "scale": 1.0,
        "initial_state": memory.float().contiguous(),
        "output_final_state": True,
    }
    rate = tokens.log_decay
    if rate is not None:
        rate = _swap(rate.expand(b, h, n, -1))  # [b, n, h, d|1]
    if tokens.beta is not None:
        beta = tokens.beta.mT.contiguous()  # [b, n, h]
        if rate is None:
            out, last = _kernel("delta_rule", "chunk_delta_rule")(
                q, k, v, beta.to(tokens.dtype), **shared
            )
        else:
            out, last = _kernel("gated_delta_rule", "chunk_gated_delta_rule")(
                q, k, v, g=rate.squeeze(-1), beta=beta.to(tokens.dtype), **shared
            )
    elif rate is not None and rate.shape[-1] == d > 1:
        out, last = _kernel("gla", "chunk_gla")(q, k, v, g=rate, **shared)
    else:
        # Its `g_gamma` (one decay per head) gets no gradient, so every decay goes as `g`.
        g = None if rate is None else rate.squeeze(-1)
        out, last = _kernel("simple_gla", "chunk_simple_gla")(q, k, v, g=g, **shared)
    return _swap(out).to(tokens.q.dtype), last.to(tokens.q.dtype)


def _kernel(package: str, name: str) -> Any:
    return getattr(importlib.import_module(f"fla.ops.{package}"), name)


def _swap(x: Tensor) -> Tensor:
    """Exchange heads and tokens, `[b, h, n, d]` and `[b, n, h, d]`."""
    return x.transpose(1, 2).contiguous()
