"""Attention whose weights are those of a sparse distributed memory (Kanerva's).

A pattern is written to all neurons within a Hamming radius of its address, a query reads all within
that radius of itself: so a pattern weighs as much as the two balls have in common,

    overlap(v) = sum_a C(n - v, a) sum_c C(v, c),
    0 <= a <= n - v,  max(0, n - d - a) <= c <= min(v, a + d + v - n),

for addresses of n bits at distance v, and radius d. Its logarithm falls nearly in a line, so
softmax of inverse temperature beta = b n / 2 on cosines approximates it (Bricken 2021).
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.errors import ValueRangeError, fail
from regard.core.features import unit
from regard.core.method import method
from regard.core.score import Dot
from regard.core.score.base import At
from regard.core.score.biases import PlaceStep
from regard.core.value import value
from regard.layers.attention import Attention
from regard.layers.registry import register


@functools.cache
def overlap(bits: int, radius: int) -> tuple[int, ...]:
    """Count the addresses within a radius of both of two addresses, by their distance 0 ... bits.

    >>> overlap(3, 1)  # balls of 4 addresses; at distance 2 they share 2, at 3 none
    (4, 2, 2, 0)
    """
    if not 0 <= radius <= bits:
        fail(ValueRangeError, "radius", radius, f"from 0 to {bits} bits", "take bits // 2 - 6, say")
    found = []
    for v in range(bits + 1):
        # a bits are right where both agree; c are right where they differ.
        found.append(
            sum(
                math.comb(bits - v, a) * math.comb(v, c)
                for a in range(bits - v + 1)
                for c in range(max(0, bits - radius - a), min(v, a + radius + v - bits) + 1)
            )
        )
    return tuple(found)


@value
class Overlap(PlaceStep):
    """Cosines to logarithms of overlaps: log overlap(bits (1 - cos) / 2), between bits in a line.

    >>> step = Overlap(64, 24)
    >>> step.change(torch.tensor([1.0, 0.0]), None).tolist()
    [0.0, -3.57...]
    """

    bits: int
    radius: int
    adds: ClassVar = False

    def __post_init__(self) -> None:
        overlap(self.bits, self.radius)

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Look up the table, between two entries."""
        counts = overlap(self.bits, self.radius)
        shares = [x / counts[0] for x in (*counts, counts[-1])]
        table = torch.tensor(shares, dtype=scores.dtype, device=scores.device)
        v = (self.bits * (1 - scores) / 2).clamp(0, self.bits)
        below = v.detach().nan_to_num().floor().long()  # a NaN is no index; it stays in v
        low, high = table[below], table[below + 1]
        return torch.log(
            (low + (v - below) * (high - low)).clamp_min(torch.finfo(scores.dtype).tiny)
        )


class Unit(nn.Module):
    """Scale vectors to length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis."""
        return unit(x)


@register("sdm")
@method("sdm_attention", call='import regard\nlayer = regard.layer("sdm", 512, heads=8, radius=24)')
class SparseDistributed(Attention):
    """Attention to keys by the overlap of their Hamming balls with that of the query.

    `bits` n and `radius` d are those of the memory; queries and keys are scaled to length 1.

    >>> SparseDistributed(32, heads=4, bits=64, radius=24)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    def __init__(
        self, dim: int, heads: int, *, bits: int = 64, radius: int = 24, **settings: Any
    ) -> None:
        self.decides(settings, "qk_norm")
        settings.setdefault("score", Dot(1.0) >> Overlap(bits, radius))
        super().__init__(dim, heads, qk_norm=lambda _: Unit(), **settings)


def fitted_beta(bits: int, radius: int, until: int | None = None) -> float:
    """Return the inverse temperature on cosines whose softmax best fits the overlap.

    A line is fitted to log overlap(v) for v < `until` (the radius unless given); the result is
    minus its slope times bits / 2.

    >>> round(fitted_beta(64, 24), 1) > round(fitted_beta(64, 30), 1)
    True
    """
    counts = overlap(bits, radius)
    until = max(2, min(radius if until is None else until, sum(x > 0 for x in counts)))
    y = torch.tensor([math.log(x) for x in counts[:until]], dtype=torch.float64)
    v = torch.arange(until, dtype=torch.float64)
    v = v - v.mean()
    return -float((v * y).sum() / (v * v).sum()) * bits / 2


def matched_radius(beta: float, bits: int = 64) -> int:
    """Return the radius whose fitted inverse temperature is nearest to `beta`.

    >>> matched_radius(fitted_beta(64, 27))
    27
    """
    return min(range(1, bits // 2), key=lambda d: abs(fitted_beta(bits, d) - beta))
