"""RWKV-7: a recurrent layer that erases along one direction and writes along another."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from regard.core.autocast import autocast_alike
from regard.core.features import unit
from regard.core.scan import starts
from regard.layers.arguments import need_size
from regard.layers.attention import joined, split
from regard.layers.convolution import taps
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.recurrent import Recurrent
from regard.layers.registry import register
from regard.run.low_rank_scanning import scan_low_rank


class Low(nn.Module):
    """A low-rank map: `act(x A) B + bias`."""

    def __init__(self, dim: int, out: int, rank: int, act: Any = None, bias: bool = True) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, rank, bias=False), nn.Linear(rank, out, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map x [b, n, dim] to [b, n, out]."""
        few = self.down(x)
        found: Tensor = self.up(few if self.act is None else self.act(few))
        return found


class Rwkv7Tokens(NamedTuple):
    """The inputs of an RWKV-7 scan, [b, h, n, d] each; `erased` is a unit vector.

    `rate` is the share of the memory's value along it that is erased, by channel.
    """

    r: Tensor
    log_decay: Tensor
    k: Tensor
    v: Tensor
    erased: Tensor
    rate: Tensor


@register("rwkv7")
class Rwkv7(Recurrent):
    """The time mixing of RWKV-7: decay by channel, and a generalized delta rule.

    `S_t = (diag(w_t) - (kappa_t * a_t) kappa_t^T) S_{t-1} + k_t v_t^T`, `o_t = r_t S_t`: what the
    memory holds along kappa, a unit vector, is erased along `kappa * a`, channel by channel.
    `log w = -exp(-1/2) sigmoid(.)`, so no channel decays by more than 45% at a token.
    r, w, k, v, a and the gate are each made of a mix of the token with the one before it. Heads are
    normalized, `(r . (rho * k)) v` is added, and the gate multiplies. The paper's mix of values
    with the first layer's is not implemented.

    >>> Rwkv7(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        cross=False, bidirectional=False, constant_memory=True, linear=True
    )

    def __init__(
        self, dim: int, heads: int, *, rank: int = 32, **settings: Any
    ) -> None:  # fmt: skip
        need_size("rank", rank)
        self.rank = rank
        super().__init__(dim, heads, **settings)

    def make_projections(self, bias: bool) -> None:
        """Build projections, low-rank maps, mixes with the token before, and the norm of heads."""
        dim, inner, rank = self.dim, self.heads * self.head_dim, self.rank
        values = self.heads * self.value_dim
        self.mixes = nn.Parameter(torch.linspace(0, 1, 6)[:, None].repeat(1, dim))
        self.to_r, self.to_k = (nn.Linear(dim, inner, bias) for _ in range(2))
        self.to_v = nn.Linear(dim, values, bias)
        self.to_decay = Low(dim, inner, rank, torch.tanh)
        self.to_rate = Low(dim, inner, rank)
        self.to_gate = Low(dim, values, rank, torch.sigmoid, bias=False)
        self.key_scale = nn.Parameter(torch.full((inner,), 0.7))
        self.key_rate = nn.Parameter(torch.ones(inner))
        self.bonus = nn.Parameter(torch.full((self.heads, self.head_dim), -0.04))
        self.norm = nn.GroupNorm(self.heads, values, eps=1e-5 * self.value_dim)
        self.to_out = nn.Linear(values, dim, bias)

    def tokens(self, input: LayerInput) -> tuple[Rwkv7Tokens, Tensor]:
        """Build the inputs of the scan, and the gate [b, n, h d]."""
        near = taps(input.x, 2, input, "before", causal=True)  # the token before, and the token
        x_r, x_w, x_k, x_v, x_a, x_g = (
            near[:, :, 1] + (near[:, :, 0] - near[:, :, 1]) * mix for mix in self.mixes
        )
        k, rate = self.to_k(x_k), self.to_rate(x_a).sigmoid()
        log_decay = -math.exp(-0.5) * self.to_decay(x_w).sigmoid()
        erased = unit(split(k * self.key_scale, self.heads))
        k = k * (1 + (rate - 1) * self.key_rate)
        parts = (self.to_r(x_r), log_decay, k, self.to_v(x_v))
        r, log_decay, k, v = (split(x, self.heads) for x in parts)
        return Rwkv7Tokens(
            r, log_decay, k, v, erased, split(rate, self.heads)
        ), self.to_gate(x_g)  # fmt: skip

    def compute(self, input: LayerInput) -> Tensor:
        """Scan, normalize the heads, add the token's own value, gate and project."""
        own, gate = self.tokens(input)
        seen = self.scanned(own, input)
        y = self.norm(joined(seen).flatten(0, 1)).view_as(gate)
        alone = (own.r * own.k * self.bonus[:, None]).sum(-1, keepdim=True) * own.v
        mixed: Tensor = self.to_out((y + joined(alone)) * gate)
        return mixed

    def scanned(self, own: Rwkv7Tokens, input: LayerInput) -> Tensor:
        """Run the scan with the memory, padding and documents of an input: [b, h, n, e]."""
        memory, ids = input.memory, input.documents
        r, k, v, erased, rate = autocast_alike(own.r, own.k, own.v, own.erased, own.rate)
        seen, state = scan_low_rank(
            r, k, v, erased * rate, -erased,
            log_decay=own.log_decay,
            state=None if memory is None else memory.get("state"),
            keep=input.padding,
            reset=None if ids is None else starts(ids),
        )  # fmt: skip
        if memory is not None:
            memory.keep("state", state)
        return seen
