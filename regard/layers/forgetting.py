"""Attention with a forget gate for each token (FoX)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.partial import wide
from regard.core.score import LowRankBias
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("forgetting_attention")
class ForgettingAttention(Attention):
    """A forget gate of each head and token lowers the scores of all keys before it.

    `s'_ij = s_ij + sum_{j < t <= i} log f_t`, with `f_t = sigmoid(x_t W_f + b_f)`: softmax
    attention with the decay of a recurrent layer, and so without positions. With all f = 1 it is
    plain attention. The sum is carried in two extra channels of q and k, always in float32, since
    half precision cannot hold it. A decoder keeps one number for each key and head.

    >>> ForgettingAttention(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, multihead_weights=True
    )

    def __init__(self, dim: int, heads: int, *, causal: bool = True, **settings: Any) -> None:
        self.decides(settings, "support")
        super().__init__(dim, heads, causal=causal, **settings)
        self.to_forget = nn.Linear(dim, heads)

    def log_gates(self, input: LayerInput) -> Tensor:
        """Return the log of the forget gates, [b, h, n]; padding forgets nothing."""
        x = self.to_forget(input.x)
        found = F.logsigmoid(x.to(wide(x.dtype))).transpose(1, 2)
        return found if input.padding is None else found * input.padding[:, None]

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Subtract from the scores what was forgotten since each key."""
        gone = self.log_gates(input).cumsum(2)
        memory, every = input.memory, gone
        if memory is not None:
            kept = memory.get("forgotten")
            if kept is not None:
                gone = gone + kept[..., -1:]
                every = torch.cat((kept, gone), 2)
            memory.keep("forgotten", every)
        one = torch.ones_like
        bias = LowRankBias(
            torch.stack((gone, one(gone)), -1), torch.stack((one(every), -every), -1)
        )
        q, k, v = (x.to(gone.dtype) for x in (call.q, call.k, call.v))
        rule = call.rule.replace(score=call.rule.score + bias)
        seen = super().look(call.replace(q=q, k=k, v=v, rule=rule), input)
        return seen.to(call.q.dtype)
