"""Heads combined before or after the softmax: differential attention, talking heads."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.autocast import autocast_alike
from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.parts import mixed
from regard.core.rule import Rule
from regard.core.score import Dot, Score
from regard.core.weigh import Softmax, Weigh
from regard.layers.arguments import need_share
from regard.layers.attention import Attention, joined, split
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("differential")
class Differential(Attention):
    """Each head is the difference of two attentions, which cancels common noise.

    `head = (softmax(q1 k1^T) - strength softmax(q2 k2^T)) v`, normalized and scaled by
    `1 - start`; the learned strength is `start` at initialization.

    >>> Differential(64, heads=4)(torch.randn(1, 5, 64)).shape
    torch.Size([1, 5, 64])
    """

    can: ClassVar[Capabilities] = Capabilities()

    def __init__(self, dim: int, heads: int, *, start: float = 0.8, **settings: Any) -> None:
        need_share("start", start)
        settings.setdefault("head_dim", max(dim // heads // 2, 1))
        settings.setdefault("value_dim", 2 * settings["head_dim"])
        super().__init__(dim, heads, **settings)
        self.start = start
        self.of_strength = nn.Parameter(0.1 * torch.randn(4, self.head_dim))
        self.norm = nn.RMSNorm(self.value_dim)

    def make_projections(self, bias: bool) -> None:
        """Build twice as many queries and keys as values."""
        super().make_projections(bias)
        self.to_q = nn.Linear(self.dim, 2 * self.heads * self.head_dim, bias)
        self.to_k = nn.Linear(self.context_dim, 2 * self.kv_heads * self.head_dim, bias)

    def queries(self, x: Tensor) -> Tensor:
        """Build q [b, 2 h, n, d]."""
        return split(self.to_q(x), 2 * self.heads)

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Build k [b, 2 g, m, d], and the same v [b, 2 g, m, e] for both of a pair."""
        k = split(self.to_k(context), 2 * self.kv_heads)
        return k, expand_heads(split(self.to_v(context), self.kv_heads), 2 * self.kv_heads)

    def rule(self) -> Rule:
        """Build the rule, with the position steps of a head repeated for both of its queries."""
        rule = super().rule()
        if not rule.score.steps:
            return rule
        pairs = [head for head in range(self.heads) for _ in range(2)]
        steps = tuple(step.take_heads(pairs) for step in rule.score.steps)
        return rule.replace(score=Score(rule.score.match, steps))

    def strength(self) -> Tensor:
        """Return the factor of the second attention, which is subtracted."""
        a, b, c, d = self.of_strength
        strength: Tensor = (a @ b).exp() - (c @ d).exp() + self.start
        return strength

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Subtract the second of each pair of heads from the first."""
        first, second = super().look(call, input).unflatten(1, (self.heads, 2)).unbind(2)
        minus = -self.strength().expand(self.heads)
        found: Tensor = self.norm(mixed((first, second), (1.0, minus))) * (1 - self.start)
        return found


@register("talking_heads")
class TalkingHeads(Attention):
    """Scores are mixed among heads before the softmax, and weights after it.

    `S'_i = sum_j P_ij S_j`, `A'_i = sum_j R_ij softmax(S')_j`. The first mixture is folded into
    the queries (heads side by side against all keys), the second into the output, so any executor
    runs it; products are h times as wide.

    >>> TalkingHeads(32, heads=4)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(multihead_weights=True)

    def __init__(self, dim: int, heads: int, **settings: Any) -> None:
        super().__init__(dim, heads, **settings)
        if "score" not in settings:  # scale by the head size, not by the width of the products
            self._score = Dot(self.head_dim**-0.5)
        self.of_scores = nn.Parameter(torch.eye(heads))
        self.of_weights = nn.Parameter(torch.eye(heads))

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend with heads side by side."""
        h = call.h
        k, v = (joined(expand_heads(x, h))[:, None] for x in (call.k, call.v))
        q = torch.einsum("ij,bjnd->binjd", self.of_scores, call.q).flatten(3)
        q, k, v = autocast_alike(q, k, v)
        seen = super().look(call.replace(q=q, k=k, v=v), input).unflatten(3, (h, -1))
        # seen [b, j, n, i, e]: weights of head j over the values of head i.
        return torch.einsum("ij,bjnie->bine", self.of_weights, seen)


@register("softmax_plus_one")
class SoftmaxPlusOne(Attention):
    """Softmax with one added to the denominator, so a head may attend to nothing.

    `w_j = exp(s_j) / (1 + sum exp(s))`

    >>> SoftmaxPlusOne(32, heads=4)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(multihead_weights=True)

    def __init__(self, dim: int, heads: int, **settings: Any) -> None:
        self.decides(settings, "weigh")
        super().__init__(dim, heads, **settings)

    def weigh(self) -> Weigh:
        """Add one to the denominator."""
        return Softmax(plus_one=True)
