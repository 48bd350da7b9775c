"""Estimate the cost of a run before it is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regard.core.errors import ValueRangeError, fail, shape_of
from regard.models.site import Sites

# For sites of unknown head size.
HEAD_SIZE = 64


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds of attention over `n` tokens, over all sites of a model.

    Seconds are of attention alone, surveys included; `guessed` counts the sites of unknown head
    size, which is assumed to be 64.
    """

    n: int
    sites: int
    flops: float
    seconds: float
    survey_bytes: int
    kv_bytes: int
    weights_bytes: int
    guessed: int = 0

    def __str__(self) -> str:
        guessed = f" (head size of {self.guessed} sites assumed)" if self.guessed else ""
        return (
            f"{self.sites} sites, {self.n:,} tokens: attention about {self.seconds:.2g} s "
            f"({self.flops:.2g} FLOP); keys and values {_size(self.kv_bytes)}; surveys "
            f"{_size(self.survey_bytes)}; the matrices would take {_size(self.weights_bytes)}"
            f"{guessed}"
        )


def estimate(model: Any, n: int, want: Sequence[str] = (), *, batch: int = 1) -> Estimate:
    """Estimate what `n` tokens cost a model, and what a survey of `want` adds.

    The model is not run. Seconds are extrapolated from one small attention, and one small survey,
    on its device; bytes of surveys from those at three lengths.
    """
    for name, x in (("n", n), ("batch", batch)):
        if isinstance(x, bool) or not isinstance(x, int) or x < 1:
            fail(ValueRangeError, name, shape_of(x), "a number of at least 1", f"pass {name}=4")
    from regard.models.attach import hook_of

    sites: Sites = hook_of(model)[1]
    want = (want,) if isinstance(want, str) else tuple(want)
    parameter = next(iter(model.parameters()), torch.zeros(()))
    seen = _survey_bytes(n, want)
    flops = kv = rows = weights = 0.0
    for s in sites:
        h, d = s.heads or 1, s.head_size or HEAD_SIZE
        flops += 4.0 * batch * h * n * n * d * (0.5 if s.causal else 1.0)
        kv += 2.0 * batch * (s.kv_heads or h) * n * d * parameter.element_size()
        rows += batch * h * seen
        weights += float(parameter.element_size()) * batch * h * n * n
    guessed = sum(s.head_size is None for s in sites)
    seconds = flops * _seconds_a_flop(parameter, want)
    return Estimate(n, len(sites), flops, seconds, int(rows), int(kv), int(weights), guessed)


def _survey_bytes(n: int, want: Sequence[str]) -> float:
    """Return the bytes of a survey of one head: a polynomial of degree 2 in the length."""
    if not want:
        return 0.0
    from regard.run.survey import survey

    sizes, kept = (64, 128, 192), []
    for size in sizes:
        q = torch.zeros(1, 1, size, 8)
        found = survey(q, q, q, want=want).found
        kept.append(sum(x.numel() * x.element_size() for x in found.values()))
    bend = (kept[2] - 2 * kept[1] + kept[0]) / 2
    slope = kept[1] - kept[0] - bend
    x = (n - 64) / 64
    return max(float(bend * x * x + slope * x + kept[0]), 0.0)


def _seconds_a_flop(like: torch.Tensor, want: Sequence[str]) -> float:
    """Return the seconds for each FLOP of a small attention, with its survey if wanted."""
    from regard.run.survey import survey

    n = 1024
    q = torch.randn(1, 4, n, 64, device=like.device, dtype=like.dtype)
    took = _took(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), like.device)
    if want:
        took += _took(lambda: survey(q, q, q, want=want), like.device)
    return took / (4.0 * 4 * n * n * 64)


def _took(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the second call, when everything is warm."""
    with torch.no_grad():
        call()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _size(x: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if x < 1024:
            return f"{x:.1f} {unit}"
        x /= 1024
    return f"{x:.1f} PiB"
