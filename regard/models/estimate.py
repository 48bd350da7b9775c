"""What a run would cost, before it is run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regard.core.errors import ValueRangeError, fail, shape_of
from regard.models.site import Sites

# Bytes a row (b = 1, one head) that a statistic keeps; those not named keep one float a row.
ROW_BYTES = {"entropy": 4, "received": 4, "top": 8 * 12, "tiles": 0}


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds of attention over `n` tokens, over all sites of a model."""

    n: int
    sites: int
    flops: float
    seconds: float
    survey_bytes: int
    kv_bytes: int
    weights_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.sites} sites, {self.n:,} tokens: attention about {self.seconds:.2g} s "
            f"({self.flops:.2g} FLOP); keys and values {_size(self.kv_bytes)}; surveys "
            f"{_size(self.survey_bytes)}; the matrices would take {_size(self.weights_bytes)}"
        )


def estimate(model: Any, n: int, want: Sequence[str] = (), *, batch: int = 1) -> Estimate:
    """Estimate what `n` tokens cost a model, and what a survey of `want` adds; nothing is run.

    Seconds come from the rate that one small attention reaches now on the device of the model.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        fail(ValueRangeError, "n", shape_of(n), "a number of tokens of at least 1", "pass n=4096")
    from regard.models.attach import hook_of

    sites: Sites = hook_of(model)[1]
    parameter = next(iter(model.parameters()), torch.zeros(()))
    flops = kv = rows = weights = 0.0
    for s in sites:
        h, d = s.heads or 1, s.head_size or 64
        flops += 4.0 * batch * h * n * n * d * (0.5 if s.causal else 1.0)
        kv += 2.0 * batch * (s.kv_heads or h) * n * d * parameter.element_size()
        rows += batch * h * sum(ROW_BYTES.get(w, 4) * n for w in want)
        rows += batch * h * 8 * (n / 64) ** 2 * ("tiles" in want)
        weights += 4.0 * batch * h * n * n
    sweeps = 1 + (2.5 if want else 0)
    seconds = flops * sweeps / _rate(parameter)
    return Estimate(n, len(sites), flops, seconds, int(rows), int(kv), int(weights))


def _rate(like: torch.Tensor) -> float:
    """FLOP per second that one small attention reaches."""
    q = torch.randn(1, 4, 512, 64, device=like.device, dtype=like.dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    attend(q, q, q)
    start = time.perf_counter()
    out = attend(q, q, q)
    out.sum().item()  # waits for the device
    return 4.0 * 4 * 512 * 512 * 64 / max(time.perf_counter() - start, 1e-6)


def _size(x: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if x < 1024:
            return f"{x:.1f} {unit}"
        x /= 1024
    return f"{x:.1f} PiB"
