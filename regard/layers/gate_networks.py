"""Gates in place of attention: Gaussians over features, and a gate made by an MLP-Mixer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.method import method
from regard.layers.arguments import need_divisor, need_size
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("gaam")
@method("gaam", call='import regard\nlayer = regard.layer("gaam", 512, heads=4, gaussians=3)')
class GaussianGate(Layer):
    """Each slice of features is gated by a product of learned Gaussians on its values (GAAM).

    `y = x g`, `g` the product over Gaussians of `N(z - delta; c)` for z the standardized
    slice, divided by its sum over the slice. Two parameters a Gaussian are learned. Tokens are not
    mixed. Products are computed as sums of logarithms.

    >>> GaussianGate(32, heads=4, gaussians=2)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(cross=False, constant_memory=True, linear=True)

    def __init__(
        self, dim: int, heads: int = 1, *, gaussians: int = 3, causal: bool = False,
        context_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("heads", heads)
        need_size("gaussians", gaussians)
        need_divisor("heads", heads, "channels of dim", dim)
        self.offsets = nn.Parameter(torch.zeros(heads, gaussians))
        self.spreads = nn.Parameter(torch.randn(heads, gaussians))

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate of x [b, n, dim]: [b, n, heads, slice], summing to 1 over a slice."""
        slices = x.unflatten(-1, (len(self.offsets), -1))
        centered = slices - slices.mean(-1, keepdim=True)
        deviation = (slices.var(-1, correction=0, keepdim=True) + 1e-8).sqrt()
        # [b, n, heads, slice, gaussians]; the factor before each exponential cancels in the sum.
        z = ((centered / deviation)[..., None] - self.offsets[:, None]).square()
        log_density = -(z / (2 * self.spreads.square()[:, None] + 1e-6)).sum(-1)
        gate: Tensor = log_density.softmax(-1)
        return gate

    def compute(self, input: LayerInput) -> Tensor:
        """Gate the features."""
        return input.x * self.gate(input.x).flatten(-2)


@register("ninformer")
@method("ninformer", call='import regard\nlayer = regard.layer("ninformer", 256, tokens=64)')
class MixerGate(Layer):
    """A small MLP-Mixer computes the gate of a linear map: `y = (x W + b) v(x)` (NiNformer).

    `v` mixes tokens and then channels, with residual connections; the gate is unbounded. The
    number of tokens is fixed.

    >>> MixerGate(32, tokens=24)(torch.randn(1, 24, 32)).shape
    torch.Size([1, 24, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, decode=False, padding=False, left_padding=False,
        documents=False, any_length=False,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "tokens": 24}

    def __init__(
        self, dim: int, *, tokens: int, hidden: int | None = None, dropout: float = 0.0,
        causal: bool = False, context_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("tokens", tokens)
        self.tokens, hidden = tokens, 2 * dim if hidden is None else hidden
        self.to_value = nn.Linear(dim, dim)
        self.norms = nn.ModuleList((nn.LayerNorm(dim), nn.LayerNorm(dim)))
        self.over_tokens, self.over_channels = (
            nn.Sequential(
                nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, size)
            )
            for size in (tokens, dim)
        )

    def gate(self, x: Tensor) -> Tensor:
        """Run the small mixer."""
        x = x + self.over_tokens(self.norms[0](x).mT).mT
        gate: Tensor = x + self.over_channels(self.norms[1](x))
        return gate

    def compute(self, input: LayerInput) -> Tensor:
        """Gate a linear map of the tokens."""
        if input.x.shape[1] != self.tokens:
            self.cannot(
                "x", f"{input.x.shape[1]} tokens", f"mix other than {self.tokens}",
                "build it for that many, or pad",
            )  # fmt: skip
        gated: Tensor = self.to_value(input.x) * self.gate(input.x)
        return gated
