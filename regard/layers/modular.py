"""Attention for tokens that a router activates, after an average over all tokens (SeqBoat)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.autocast import autocast_alike
from regard.core.call import Call
from regard.core.method import method
from regard.core.support import Padding, Window
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.averaging import DampedAverage
from regard.layers.gated_averages import TwoScalings
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register
from regard.memories.full import Full


class GatheredTokens(NamedTuple):
    """The chosen tokens of each row, gathered: `order` and `there` [b, c]."""

    order: Tensor
    there: Tensor

    @staticmethod
    def of(chosen: Tensor) -> GatheredTokens:
        """Return the chosen tokens [b, n], in order.

        >>> which = torch.tensor([[False, True, True], [True, False, False]])
        >>> GatheredTokens.of(which).order.tolist()
        [[1, 2], [0, 1]]
        """
        count = chosen.sum(1)
        most = int(count.max()) if chosen.numel() else 0
        order = torch.argsort(~chosen, dim=1, stable=True)[:, :most]
        return GatheredTokens(order, torch.arange(most, device=chosen.device) < count[:, None])

    def take(self, x: Tensor) -> Tensor:
        """Gather the chosen of x [b, n, c]: [b, chosen, c]."""
        return x.gather(1, self.order[..., None].expand(-1, -1, x.shape[-1]))

    def put_back(self, y: Tensor, n: int) -> Tensor:
        """Scatter [b, chosen, c] back to n tokens, zeros elsewhere."""
        index = self.order[..., None].expand_as(y)
        return y.new_zeros(len(y), n, y.shape[-1]).scatter(1, index, y * self.there[..., None])


@register("seqboat_sma")
@method("seqboat_sma", call='import regard\nlayer = regard.layer("seqboat_sma", 512, causal=True)')
class SparseModular(Attention):
    """A router activates attention for some tokens, which attend to one another in a window.

    `h = silu(average(x))`, `p = softmax(h U / tau)`, a token is active where its second share is
    the larger; `y = silu(x + h R + p o)` with o from gated attention among active tokens, 0 for
    others. The window counts active tokens, so it may reach back any distance.

    >>> SparseModular(32, window=4, causal=True)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        cross=False, documents=False, linear=True, constant_memory=True, meta=False, vmap=False
    )
    tiny: ClassVar[dict[str, Any]] = {
        "dim": 32, "head_dim": 8, "value_dim": 24, "rates": 4, "window": 6,
    }  # fmt: skip

    def __init__(
        self, dim: int, *, window: int = 128, head_dim: int | None = None,
        value_dim: int | None = None, rates: int = 16, position: Any = "rotary", **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "support", "bias")
        need_size("window", window)
        super().__init__(
            dim, 1, head_dim=max(dim // 4, 2) if head_dim is None else head_dim,
            value_dim=2 * dim if value_dim is None else value_dim, position=position,
            support=Window(window), **settings,
        )  # fmt: skip
        self.average = DampedAverage(dim, size=rates, causal=self.causal)
        self.log_temperature = nn.Parameter(torch.tensor(0.3 * dim**0.5).log())

    def make_projections(self, bias: bool) -> None:
        """Build the router, the path around attention, and the gated unit."""
        self.to_router = nn.Linear(self.dim, 2, bias=False)
        self.to_plain = nn.Linear(self.dim, self.dim)
        self.scalings = TwoScalings(self.dim, self.head_dim)
        self.to_v = nn.Linear(self.dim, self.value_dim)
        self.to_reset = nn.Linear(self.dim, self.value_dim)
        self.to_out = nn.Linear(self.value_dim, self.dim, bias=False)

    def compute_eagerly(self, input: LayerInput) -> Tensor:
        """Average all tokens, and attend among the active ones."""
        averaged = F.silu(self.average(input.x, input))
        active, share = self.route(averaged)
        if input.padding is not None:
            active = active & input.padding
        packed = GatheredTokens.of(active)
        plain = input.x + self.to_plain(averaged)
        if packed.order.shape[1] == 0:
            return F.silu(plain)
        out = self.among_active(packed.take(averaged), packed, input)
        seen = packed.put_back(out, active.shape[1])
        return F.silu(plain + share[..., None] * seen)

    def route(self, averaged: Tensor) -> tuple[Tensor, Tensor]:
        """Return which tokens are active, and the router's probability of it, [b, n]."""
        shares = torch.softmax(self.to_router(averaged) / self.log_temperature.exp(), -1)
        return shares[..., 1] > shares[..., 0], shares[..., 1]

    def among_active(self, h: Tensor, packed: GatheredTokens, input: LayerInput) -> Tensor:
        """Attend among active tokens h [b, c, dim], numbered in a row."""
        memory, rule = input.memory, self.rule()
        count = None if memory is None else memory.get("active")
        before = h.new_zeros(len(h), dtype=torch.long) if count is None else count
        now = before[:, None] + torch.arange(h.shape[1], device=h.device)
        q, k = (self.position.turn(x, now) for x in self.scalings(h))
        q, k, v = autocast_alike(q, k, F.silu(self.to_v(h))[:, None])
        at: Tensor | None = now
        places: Tensor | None = torch.where(packed.there, now, -1)
        if memory is not None:
            kept = memory.of_kind("keys", Full)
            kept.extend(k, v, at=places)
            kept.forget([self.rule().support.horizon(first) for first in before.tolist()])
            memory.keep("active", before + packed.there.sum(1))
            held = kept.read()
            k, v, places = held.k, held.v, held.positions
        if count is None:  # all rows begin at position 0: the window is a plain band
            at, places = None, None
            rule = (
                rule if self.causal else rule.replace(support=rule.support & Padding(packed.there))
            )
        dropout = self.dropout if self.training else 0.0
        seen = self.look(Call.of(q, k, v, rule, at, places, dropout), input)
        return self.mix(F.silu(self.to_reset(h))[:, None] * seen, input)
