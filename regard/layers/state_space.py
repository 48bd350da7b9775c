"""State space duality: the layer of Mamba-2, as attention with token-dependent decay."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.attention import joined, split
from regard.layers.convolution import DepthwiseConvolution
from regard.layers.hybrid import SelectiveState
from regard.layers.inputs import LayerInput
from regard.layers.registry import register


@register("mamba2")
class StateSpaceDuality(SelectiveState):
    """Mamba-2: a selective state space with one decay a head, equal to masked attention.

    `S_t = exp(A d_t) S_{t-1} + B_t (d_t x_t)^T`, `y_t = C_t S_t + D x_t`, which is attention
    `y = (L * C B^T) (d x)` with `L_ij = exp(A sum_{j < t <= i} d_t)` under a causal mask. Gate,
    x, B, C and d are one projection of the token; x, B and C pass the short convolution (in
    `selective_state` x alone does, and the others are computed from it). `y` is gated by `silu(z)`,
    normalized and projected; values are twice as wide as `dim` unless `value_dim` is given.

    >>> StateSpaceDuality(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    def __init__(
        self, dim: int, heads: int, *, states: int = 64, value_dim: int | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        twice = 2 * (settings.get("head_dim") or dim // max(heads, 1))
        super().__init__(
            dim, heads, states=states, value_dim=twice if value_dim is None else value_dim,
            **settings,
        )  # fmt: skip

    def make_projections(self, bias: bool) -> None:
        """Build one projection for gate, values, B, C and d."""
        inner = self.heads * self.value_dim
        self.sizes = (inner, inner + 2 * self.states, self.heads)
        self.to_all = nn.Linear(self.dim, sum(self.sizes), bias)
        self.near = DepthwiseConvolution(
            self.sizes[1], size=self.taps, causal=True, name="taps", bias=True
        )
        # At initialization d is from 0.001 to 0.1, and A from -1 to -16.
        step = torch.logspace(-3, -1, self.heads)
        self.step = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.rate = nn.Parameter(torch.linspace(1, 16, self.heads).log())
        self.through = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.norm = nn.RMSNorm(inner)
        self.to_out = nn.Linear(inner, self.dim, bias)

    def parts(self, input: LayerInput) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return z [b, n, h e], x [b, h, n, e], B and C [b, h, n, states], d [b, h, n]."""
        gate, mixed, step = self.to_all(input.x).split(self.sizes, -1)
        mixed = F.silu(self.near(mixed, input))
        inner = self.sizes[0]
        x, k, q = mixed.split([inner, self.states, self.states], -1)
        k, q = (t[:, None].expand(-1, self.heads, -1, -1) for t in (k, q))
        return gate, split(x, self.heads), k, q, F.softplus(step + self.step).transpose(1, 2)

    def dual(self, x: Tensor, k: Tensor, q: Tensor, step: Tensor, input: LayerInput) -> Tensor:
        """Return (L * C B^T) (d x), [b, h, n, e]."""
        input.between["steps"] = -self.rate.exp()[:, None] * step
        return self.look(q, k, x * step[..., None], input)

    def compute(self, input: LayerInput) -> Tensor:
        """Convolve, scan, gate and project."""
        gate, x, k, q, step = self.parts(input)
        seen = self.dual(x, k, q, step, input) + self.through * x
        mixed: Tensor = self.to_out(self.norm(joined(seen) * F.silu(gate)))
        return mixed
