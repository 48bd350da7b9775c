"""Query-independent scores: a fixed query for each head, or a few latent ones (Aaren, Latte).

Both average values over every prefix with weights that depend on the keys alone, so a decoder keeps
one average for each head (and latent), at any length.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.scan import prefix_softmax, starts
from regard.core.score import Dot
from regard.core.support import Documents, Everything, Padding, Support
from regard.layers.arguments import need_divisor, need_size
from regard.layers.attention import joined, split
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register
from regard.run.api import attend


def averaged(scores: Tensor, v: Tensor, input: LayerInput) -> Tensor:
    """Average v [b, h, m, e] by scores [b, h, m] over each prefix, kept in the input's memory."""
    memory = input.memory
    state = None if memory is None else memory.get("average")
    out, state = prefix_softmax(
        scores,
        v,
        state=None if state is None else Partial(*state),
        keep=input.padding,
        reset=None if input.documents is None else starts(input.documents),
    )
    if memory is not None:
        memory.keep("average", tuple(state))
    return out


@register("aaren")
@method("aaren", call='import regard\nlayer = regard.layer("aaren", 512, heads=8)')
class Aaren(Layer):
    """Attention as a recurrence: each head has one learned query for all tokens (Aaren).

    `o_t = softmax(q k_1 ... q k_t) v`, an average over the past, updated token by token.

    >>> Aaren(32, heads=4)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, constant_memory=True, linear=True
    )

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, context_dim: int | None = None,
        bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("heads", heads)
        need_divisor("heads", heads, "channels of dim", dim)
        self.heads = heads
        self.query = nn.Parameter(torch.randn(dim))
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim, bias) for _ in range(4))

    def scores(self, x: Tensor) -> Tensor:
        """Score every token against the one query: [b, h, n]."""
        q = split(self.to_q(self.query)[None, None], self.heads)
        k = split(self.to_k(x), self.heads)
        scores: Tensor = (k * q).sum(-1) * k.shape[-1] ** -0.5
        return scores

    def compute(self, input: LayerInput) -> Tensor:
        """Average each prefix."""
        seen = averaged(self.scores(input.x), split(self.to_v(input.x), self.heads), input)
        mixed: Tensor = self.to_out(joined(seen))
        return mixed


@register("latte")
@method("latte", call='import regard\nlayer = regard.layer("latte", 512, heads=8, latents=16)')
class Latte(Layer):
    """A query attends to latent states, each of which attends to the tokens (Latte).

    `p(s|t) = sum_l p(l|t) p(s|l)`, with `p(l|t)` a softmax of `x_t W_q` over the `latents` of a
    head and `p(s|l)` one of `x_s W_k` over the tokens seen.

    >>> Latte(32, heads=4, latents=6)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(constant_memory=True, linear=True)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "latents": 6}

    def __init__(
        self, dim: int, heads: int, *, latents: int = 16, causal: bool = False,
        context_dim: int | None = None, bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("heads", heads)
        need_size("latents", latents)
        need_divisor("heads", heads, "channels of dim", dim)
        self.heads, self.latents = heads, latents
        self.to_q = nn.Linear(dim, heads * latents, bias)
        self.to_k = nn.Linear(self.context_dim, heads * latents, bias)
        self.to_v = nn.Linear(self.context_dim, dim, bias)
        self.to_out = nn.Linear(dim, dim, bias)

    def compute(self, input: LayerInput) -> Tensor:
        """Mix the outputs of the latents."""
        shares = split(self.to_q(input.x), self.heads).softmax(-1)  # [b, h, n, l]
        mixed = (shares[..., None] * self.latent_views(input)).sum(-2)
        y: Tensor = self.to_out(joined(mixed))
        return y

    def latent_views(self, input: LayerInput) -> Tensor:
        """Return the output of each latent: [b, h, n, l, e], or n of 1 where queries share it."""
        memory = input.memory
        if input.crosses and memory is not None and memory.seen:
            kept: Tensor = memory.get("context")
            return kept
        scores = self.to_k(input.context).transpose(1, 2)  # [b, h l, m]
        v = expand_heads(split(self.to_v(input.context), self.heads), scores.shape[1])
        seen = averaged(scores, v, input) if self.causal else self._over_all(scores, v, input)
        views: Tensor = seen.unflatten(1, (self.heads, self.latents)).transpose(2, 3)
        if memory is not None and input.crosses:
            memory.keep("context", views)
        return views

    def _over_all(self, scores: Tensor, v: Tensor, input: LayerInput) -> Tensor:
        """Average over all tokens: a query of 1, with the scores as keys."""
        support: Support = Everything() if input.padding is None else Padding(input.padding)
        ones = scores.new_ones(*scores.shape[:2], 1, 1)
        if input.documents is not None:
            support = support & Documents(input.documents, input.context_documents)
            ones = ones.expand(-1, -1, input.x.shape[1], -1)
        return attend(ones, scores[..., None], v, Rule(support, Dot(1.0)))
