"""Attention heads beside heads that convolve with a kernel made for each token (ConvBERT)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.method import method
from regard.layers.arguments import need_divisor, need_size
from regard.layers.attention import Attention, joined
from regard.layers.convolution import DepthwiseConvolution, taps
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("convbert")
@method("convbert", call='import regard\nlayer = regard.layer("convbert", 256, heads=4, kernel=9)')
class SpanConvolution(Attention):
    """Half of the heads attend; the others convolve with a kernel made for each token (ConvBERT).

    The kernel of token t is `softmax(W (q_t * s_t))`, with s a convolution of the span around t.
    `heads / reduction` heads attend. A causal layer convolves over the past alone (not in the
    paper).

    >>> SpanConvolution(32, heads=4, kernel=5)(torch.randn(1, 10, 32)).shape
    torch.Size([1, 10, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(cross=False)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "kernel": 5}

    def __init__(
        self, dim: int, heads: int, *, kernel: int = 9, reduction: int = 2, **settings: Any
    ) -> None:
        self.decides(settings, "head_dim", "value_dim", "out_bias")
        need_size("reduction", reduction)
        need_size("kernel", kernel)
        need_divisor("reduction", reduction, "heads", heads)
        super().__init__(dim, heads // reduction, head_dim=dim // heads, **settings)
        inner = self.heads * self.head_dim
        self.kernel = kernel
        self.span = DepthwiseConvolution(dim, size=kernel, causal=self.causal, name="span")
        self.to_span = nn.Linear(dim, inner)
        self.to_kernel = nn.Linear(inner, self.heads * kernel)
        self.to_value = nn.Linear(dim, inner)
        self.to_out = nn.Linear(2 * inner, dim, settings.get("bias", False))

    def kernels(self, input: LayerInput) -> Tensor:
        """Build a kernel for each token and head: [b, n, h, kernel]."""
        span = self.to_span(self.span(input.x, input))
        made: Tensor = self.to_kernel(self.to_q(input.x) * span).unflatten(-1, (self.heads, -1))
        return made.softmax(-1)

    def convolved(self, input: LayerInput) -> Tensor:
        """Convolve the values with the kernels: [b, n, h d]."""
        near = taps(self.to_value(input.x), self.kernel, input, "values", causal=self.causal)
        near = near.unflatten(-1, (self.heads, -1))  # [b, n, kernel, h, d]
        return torch.einsum("bnhk,bnkhd->bnhd", self.kernels(input), near).flatten(2)

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Concatenate both kinds of heads."""
        mixed: Tensor = self.to_out(torch.cat((joined(seen), self.convolved(input)), -1))
        return mixed
