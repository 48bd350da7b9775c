"""Attention heads and state-space heads side by side in one layer (Hymba)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.method import method
from regard.core.support import Sinks, Window
from regard.layers.arguments import need_size
from regard.layers.attention import Attention, joined, split
from regard.layers.base import Layer
from regard.layers.convolution import DepthwiseConvolution
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.recurrent import Recurrent
from regard.layers.registry import register
from regard.layers.stack import Block
from regard.memories.layer import LayerMemory


@register("selective_state")
class SelectiveState(Recurrent):
    """A selective state space with one decay a head, as Mamba 2 has.

    `h_t = exp(-a d_t) h_{t-1} + d_t B_t x_t`, `y_t = (C_t h_t + D x_t) * silu(z_t)`, x through a
    short convolution; B and C of `states` numbers serve all heads.

    >>> SelectiveState(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    def __init__(
        self, dim: int, heads: int, *, states: int = 16, taps: int = 4, **settings: Any
    ) -> None:
        need_size("states", states)
        self.states, self.taps = states, taps
        super().__init__(dim, heads, **settings)

    def make_projections(self, bias: bool) -> None:
        """Build the maps to x, z, B, C and d."""
        inner = self.heads * self.value_dim
        self.to_x, self.to_gate = (nn.Linear(self.dim, inner, bias) for _ in range(2))
        self.to_states = nn.Linear(inner, 2 * self.states, bias)
        self.to_step = nn.Linear(inner, self.heads)
        self.near = DepthwiseConvolution(inner, size=self.taps, causal=True, name="taps")
        self.rate = nn.Parameter(torch.linspace(0.0, 2.0, self.heads))
        self.through = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.to_out = nn.Linear(inner, self.dim, bias)

    def compute(self, input: LayerInput) -> Tensor:
        """Convolve, scan and gate."""
        x = F.silu(self.near(self.to_x(input.x), input))
        k, q = self.to_states(x)[:, None].chunk(2, -1)
        step = -F.logsigmoid(3 - self.to_step(x).transpose(1, 2))  # softplus, [b, h, n]
        values = split(x, self.heads)
        input.between["steps"] = -self.rate.exp()[:, None] * step
        k, v = k.expand(-1, self.heads, -1, -1), values * step[..., None]
        seen = self.look(q.expand_as(k), k, v, input) + self.through * values
        mixed: Tensor = self.to_out(joined(seen) * F.silu(self.to_gate(input.x)))
        return mixed

    def rates(self, input: LayerInput) -> dict[str, Any]:
        """Decay by the step size of the token."""
        return {"log_decay": input.between.pop("steps")}


def with_meta(meta: Tensor, input: LayerInput) -> tuple[Tensor, Tensor, Tensor | None]:
    """Prepend meta tokens [1, m, dim] to a new sequence: return its x, positions and padding."""
    x, count = input.x, meta.shape[1]
    positions, padding = input.positions + count, input.padding
    if input.memory is None or not input.memory.seen:
        x = torch.cat((meta.to(x.dtype).expand(len(x), -1, -1), x), 1)
        first = torch.arange(count, device=x.device).expand(*positions.shape[:-1], -1)
        positions = torch.cat((first, positions), -1)
        if padding is not None:
            padding = torch.cat((padding.new_ones(len(x), count), padding), 1)
    return x, positions, padding


@register("hymba")
@method("hymba", call='import regard\nlayer = regard.layer("hymba", 512, heads=8, kv_heads=2)')
class Hymba(Layer):
    """Attention to a window and a state space over the same tokens, meta tokens first (Hymba).

    `y = (a norm(attention) + b norm(state)) W / 2`, with a and b learned vectors. `meta` learned
    tokens come first in every sequence, and every query may attend to them; `window=None` is full
    attention. A decoder keeps the window, the meta tokens' keys and one state. With
    `owns_meta=False` the caller prepends the meta tokens, as `HymbaStack` does once for all layers.

    >>> Hymba(32, heads=4, window=4, meta=3)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, left_padding=False, documents=False, linear=True,
        constant_memory=True,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "window": 4, "meta": 3}

    def __init__(
        self, dim: int, heads: int, *, window: int | None = 1024, meta: int = 128,
        states: int = 16, causal: bool = True, context_dim: int | None = None,
        owns_meta: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        self.decides(settings, "support")
        need_size("meta", meta)
        near = None if window is None else Window(window) | Sinks(meta)
        settings.setdefault("position", "rotary")
        self.attention = Attention(dim, heads, support=near, causal=True, **settings)
        self.state = SelectiveState(dim, heads, states=states)
        self.meta = nn.Parameter(0.02 * torch.randn(1, meta, dim)) if owns_meta else None
        self.norms = nn.ModuleList((nn.RMSNorm(dim), nn.RMSNorm(dim)))
        self.shares = nn.Parameter(torch.ones(2, dim))
        self.to_out = nn.Linear(dim, dim, bias=False)

    def compute(self, input: LayerInput) -> Tensor:
        """Prepend the meta tokens, run both branches, and mix."""
        x, positions, padding, n = input.x, input.positions, input.padding, input.x.shape[1]
        if self.meta is not None:
            x, positions, padding = with_meta(self.meta, input)
        outs = []
        for name, part in (("attention", self.attention), ("state", self.state)):
            given = {**input.for_part(name, part), "positions": positions, "padding": padding}
            outs.append(part(x, **given)[:, -n:])
        both = (norm(y) * a for norm, y, a in zip(self.norms, outs, self.shares, strict=True))
        mixed: Tensor = self.to_out(sum(both) / 2)
        return mixed


@register("hymba_stack")
class HymbaStack(Layer):
    """Blocks of Hymba layers whose meta tokens come once, in front of the first (Hymba's model).

    The first, the middle and the last of `layers` have full attention, the others a window and the
    meta tokens. Meta tokens go through every block like other tokens; a decoder computes them once.

    >>> HymbaStack(32, heads=4, layers=3, window=4, meta=3)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    can: ClassVar[Capabilities] = replace(Hymba.can, constant_memory=False, linear=False)
    tiny: ClassVar[dict[str, Any]] = {**Hymba.tiny, "layers": 4}

    def __init__(
        self, dim: int, heads: int, *, layers: int, window: int = 1024, meta: int = 128,
        causal: bool = True, context_dim: int | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("layers", layers)
        need_size("meta", meta)
        wide = {0, layers // 2, layers - 1}
        self.meta = nn.Parameter(0.02 * torch.randn(1, meta, dim))
        self.blocks = nn.ModuleList(
            Block(Hymba(
                dim, heads, window=None if i in wide else window, meta=meta, owns_meta=False,
                **settings,
            )) for i in range(layers)
        )  # fmt: skip

    def compute(self, input: LayerInput) -> Tensor:
        """Prepend the meta tokens, and run the blocks."""
        n, (x, positions, padding) = input.x.shape[1], with_meta(self.meta, input)
        for i, block in enumerate(self.blocks):
            memory = None
            if input.memory is not None:
                memory = input.memory.of_kind(f"block {i}", lambda: LayerMemory("a block"))
            x = block(x, positions=positions, padding=padding, memory=memory)
        return x[:, -n:]
