"""Linear attention with features that approximate the exponential (FAST, log-normal)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.features import exponential, matched_rates, standardized, taylor
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.support import Blocks, Causal, Padding
from regard.layers.arguments import need_size
from regard.layers.attention import split
from regard.layers.batch_statistics import keeps_statistics
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.recurrent import Linear
from regard.layers.registry import register
from regard.run.api import attend


@register("fastmax")
@method("fastmax", call='import regard\nlayer = regard.layer("fastmax", 512, heads=16, order=2)')
class Fastmax(Linear):
    """Softmax with a Taylor expansion of the exponential, which factors exactly (FAST).

    `a_ij = f(q_i k_j) / sum_j f(q_i k_j)` with `f(x) = 1 + x (+ x^2 / 2)` on standardized
    queries and keys. Order 2 gives positive weights; order 1 can give negative ones. There are
    `1 + d + d (d + 1) / 2` features, computed for some tokens at a time.

    >>> Fastmax(32, heads=4, order=1)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    piece: ClassVar[int | None] = 256

    def __init__(
        self, dim: int, heads: int, *, order: int = 2, scale: float = 1.0, standardize: bool = True,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads, **settings)
        if order not in (1, 2):
            fail(ValueRangeError, "order", order, "1 or 2", "2 has positive weights")
        if not scale > 0:
            fail(ValueRangeError, "scale", scale, "a number above 0", "1.0 is the paper's")
        self.order, self.scale, self.standardize = order, scale, standardize

    def features(self, x: Tensor) -> Tensor:
        """Compute the features whose product is the polynomial of q k."""
        x = standardized(x) if self.standardize else x
        return taylor(x * math.sqrt(self.scale), self.order)


@register("lln_attention")
@method("lln_attention", call='import regard\nlayer = regard.layer("lln_attention", 512, heads=8)')
class LogNormal(Linear):
    """Linear attention whose weights have the variance of softmax's (linear log-normal attention).

    `phi(q) = exp(alpha q)`, `phi(k) = exp(beta k)`, with alpha and beta from the variance of
    queries and keys: that of the batch while training, a running mean at inference.

    >>> LogNormal(32, heads=4)(torch.randn(1, 10, 32)).shape
    torch.Size([1, 10, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(constant_memory=True, linear=True)
    alphas: Tensor

    def __init__(self, dim: int, heads: int, *, keep: float = 0.9, **settings: Any) -> None:
        super().__init__(dim, heads, **settings)
        if not 0 <= keep < 1:
            fail(ValueRangeError, "keep", keep, "a share from 0 up to 1", "0.9 is usual")
        self.keep = keep
        self.register_buffer("alphas", torch.ones(2))

    def queries(self, x: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Map queries; the maximum subtracted from each cancels in its normalization."""
        q = split(self.to_q(x), self.heads) * (self.alphas[0] if alpha is None else alpha)
        return exponential(q, 1.0, -q.amax(-1, keepdim=True).detach())

    def keys(self, context: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map keys by the measured rate."""
        k = split(self.to_k(context), self.heads)
        beta = self.alphas[1] if beta is None else beta
        return exponential(k, beta), split(self.to_v(context), self.heads)

    @torch.no_grad()
    def rates_of(self, input: LayerInput) -> Tensor:
        """Return alpha and beta [2] of a batch, and update their running mean."""
        rates = torch.stack(matched_rates(self.to_q(input.x), self.to_k(input.context)))
        rates = rates.to(self.alphas)
        if keeps_statistics(self):
            self.alphas.lerp_(rates, 1 - self.keep)
        return rates

    def compute(self, input: LayerInput) -> Tensor:
        """Attend, with the rates of this batch while training."""
        # Not the running mean: a recomputed forward must read the same rates.
        alpha, beta = self.rates_of(input) if self.training else self.alphas
        return self.read(self.queries(input.x, alpha), lambda x: self.keys(x, beta), input)


@register("lln_diag")
class LogNormalWithBlocks(LogNormal):
    """Linear log-normal attention averaged with softmax inside blocks of tokens (LLN + Diag).

    >>> LogNormalWithBlocks(32, heads=4, blocks=4)(torch.randn(1, 10, 32)).shape
    torch.Size([1, 10, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        cross=False, decode=False, left_padding=False, documents=False, linear=True
    )

    def __init__(self, dim: int, heads: int, *, blocks: int = 64, **settings: Any) -> None:
        super().__init__(dim, heads, **settings)
        need_size("blocks", blocks)
        near = Blocks(blocks)
        self.near = Rule(Causal() & near if self.causal else near)

    def look(self, q: Tensor, k: Tensor, v: Tensor, input: LayerInput) -> Tensor:
        """Average both attentions."""
        far = super().look(q, k, v, input)
        plain = split(self.to_q(input.x), self.heads), split(self.to_k(input.x), self.heads)
        rule = self.near
        if input.padding is not None:
            rule = rule.replace(support=rule.support & Padding(input.padding))
        return (far + attend(*plain, v, rule)) / 2
