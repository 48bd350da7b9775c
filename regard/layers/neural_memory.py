"""A memory that learns at test time: gradient steps with momentum and forgetting (Titans)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.features import unit
from regard.core.method import method
from regard.core.partial import merge
from regard.core.parts import with_extra_keys
from regard.core.support import Window
from regard.layers.arguments import need_size
from regard.layers.attention import Attention, joined
from regard.layers.base import Layer
from regard.layers.convolution import DepthwiseConvolution
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.recurrent import Recurrent
from regard.layers.registry import register
from regard.run.api import partial
from regard.run.scanning import scan_momentum


@register("titans_memory")
class NeuralMemory(Recurrent):
    """A linear memory learns each key's value by gradient, then is read (Titans' long-term memory).

    `S_t = eta_t S_{t-1} + theta_t k_t (v_t - k_t M_{t-1})`, `M_t = (1 - alpha_t) M_{t-1} + S_t`,
    `y_t = q_t M_t`, with eta, theta and alpha of the token. Without momentum and forgetting it is
    the delta rule. Memories of more than one layer are not implemented.

    >>> NeuralMemory(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, documents=False, constant_memory=True, linear=True
    )

    def __init__(self, dim: int, heads: int, *, taps: int = 4, **settings: Any) -> None:
        super().__init__(dim, heads, **settings)
        need_size("taps", taps)
        self.near = DepthwiseConvolution(dim, size=taps, causal=True, name="taps")
        self.to_rates = nn.Linear(dim, 3 * heads)
        with torch.no_grad():  # little forgotten, some momentum, half a step
            self.to_rates.bias.copy_(torch.tensor([2.0, 0.0, -4.0]).repeat_interleave(heads))
        self.norm = nn.RMSNorm(self.value_dim)

    def features(self, x: Tensor) -> Tensor:
        """Scale queries and keys to length 1."""
        return unit(F.silu(x))

    def momentum_rates(self, x: Tensor) -> dict[str, Any]:
        """Return the momentum, the step size and the decay of each token."""
        eta, theta, alpha = self.to_rates(x).transpose(1, 2).chunk(3, 1)
        return {
            "log_momentum": F.logsigmoid(eta),
            "beta": theta.sigmoid(),
            "log_decay": F.logsigmoid(-alpha),
        }

    def compute(self, input: LayerInput) -> Tensor:
        """Convolve, train the memory, and read it."""
        memory = input.memory
        x = input.x + self.near(input.x, input)
        seen, state = scan_momentum(
            self.queries(x), *self.keys(x), **self.momentum_rates(input.x),
            state=None if memory is None else memory.get("state"),
            keep=input.padding,
        )  # fmt: skip
        if memory is not None:
            memory.keep("state", state)
        mixed: Tensor = self.to_out(joined(self.norm(seen)))
        return mixed


class PersistentWindow(Attention):
    """Attention to a window of the past, and to learned tokens that every query may attend to."""

    def __init__(self, dim: int, heads: int, *, window: int, persistent: int, **settings: Any):
        self.decides(settings, "weigh", "support")
        need_size("window", window)
        need_size("persistent", persistent)
        super().__init__(dim, heads, support=Window(window), **settings)
        self.takes_no_bias_of_position("persistent tokens have no position")
        self.persistent = nn.Parameter(0.02 * torch.randn(1, persistent, dim))

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend to the window and to the learned tokens, in one softmax."""
        k, v = (t.expand(call.b, -1, -1, -1) for t in self.keys(self.persistent.to(call.q.dtype)))
        k = self.norm_k(k) if self._normed else k
        if call.k_positions is None:
            return super().look(with_extra_keys(call, k, v), input)
        # Where keys have positions, the learned tokens are a part of their own, merged afterwards.
        window = partial(call.q, call.k, call.v, call.rule, k_positions=call.k_positions)
        always = partial(call.q, k, v, call.rule.score)
        return merge(window, always).out


@register("titans")
@method("titans", call='import regard\nlayer = regard.layer("titans", 512, heads=8, window=256)')
class Titans(Layer):
    """A window of attention gated by a neural memory of everything before (Titans, memory as gate).

    `y = a * silu(m) + m` with a the window's output and m the memory's, both normalized; the memory
    learns by gradient as it reads. Every query attends to `persistent` learned tokens.

    >>> Titans(32, heads=4, window=4)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    can: ClassVar[Capabilities] = NeuralMemory.can
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "window": 4, "persistent": 3}

    def __init__(
        self, dim: int, heads: int, *, window: int = 256, persistent: int = 16,
        causal: bool = True, context_dim: int | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        self.near = PersistentWindow(
            dim, heads, window=window, persistent=persistent, causal=causal, **settings
        )
        self.far = NeuralMemory(dim, heads)
        self.norms = nn.ModuleList((nn.RMSNorm(dim), nn.RMSNorm(dim)))

    def compute(self, input: LayerInput) -> Tensor:
        """Attend to the window, and gate it by the memory."""
        near = self.norms[0](self.near(input.x, **input.for_part("near", self.near)))
        far = self.norms[1](self.far(input.x, **input.for_part("far", self.far)))
        gated: Tensor = near * F.silu(far) + far
        return gated
