"""Attention within clusters of tokens (routing transformer)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.features import standardized
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.layers.arguments import need_size
from regard.layers.attention import Attention, split
from regard.layers.batch_statistics import keeps_statistics
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("routing_transformer")
@method(
    "routing_transformer",
    call='import regard\nlayer = regard.layer("routing_transformer", 512, heads=8, clusters=16)',
)
class RoutedAttention(Attention):
    """Each head attends within clusters: every center takes the tokens nearest to it.

    Queries and keys share one projection, scaled to length sqrt(d). Each of `clusters` centers
    takes its top n / clusters queries and keys; softmax is within them, and a token in several
    clusters gets the mean of their outputs (zero in none). Centers are moving averages, updated
    without gradient while training. Membership depends on the whole sequence, future included, so
    the layer does not claim to be causal; `causal_inside=True`, as in the paper's language models,
    makes attention inside a cluster causal.

    >>> RoutedAttention(32, heads=4, clusters=3)(torch.randn(1, 12, 32)).shape
    torch.Size([1, 12, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, decode=False, padding=False, left_padding=False,
        documents=False,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "clusters": 3}
    centers: Tensor

    def __init__(
        self, dim: int, heads: int, *, clusters: int = 16, keep: float = 0.999,
        causal_inside: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "kv_heads", "support", "weigh")
        need_size("clusters", clusters)
        if not 0 <= keep < 1:
            fail(ValueRangeError, "keep", keep, "a share from 0 up to 1", "the paper keeps 0.999")
        super().__init__(dim, heads, **settings)
        self.takes_no_bias_of_position("every cluster is attended to on its own")
        self.keep, self.causal_inside = keep, causal_inside
        self.register_buffer("centers", torch.randn(heads, clusters, self.head_dim))

    def make_projections(self, bias: bool) -> None:
        """Build one projection for queries and keys."""
        super().make_projections(bias)
        del self.to_k

    def queries(self, x: Tensor) -> Tensor:
        """Scale queries to length sqrt(d)."""
        return standardized(super().queries(x))

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Scale keys to length sqrt(d)."""
        k, v = self.to_q(context), self.to_v(context)
        return standardized(split(k, self.heads)), split(v, self.heads)

    def members(self, x: Tensor) -> Tensor:
        """Return the tokens of each cluster, in order: x [b, h, n, d] to [b, h, clusters, w]."""
        width = -(-x.shape[2] // self.centers.shape[1])
        return (self.centers @ x.mT).topk(width, dim=-1).indices.sort(-1).values

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Move each center towards the tokens that are nearest to it."""
        near = F.one_hot((x @ self.centers.mT).argmax(-1), self.centers.shape[1]).to(x.dtype)
        sums, counts = (near.mT @ x).sum(0), near.sum((0, 2))[..., None]
        means = torch.where(counts > 0, sums / counts.clamp_min(1), self.centers)
        self.centers.lerp_(means.to(self.centers), 1 - self.keep)

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Gather clusters, attend inside them, and average the outputs of each token."""
        if keeps_statistics(self):
            self.follow(call.q)
        take = self.members(call.q)[..., None]  # [b, h, clusters, w, 1]
        k, v = expand_heads(call.k, call.h), expand_heads(call.v, call.h)

        def gathered(x: Tensor) -> Tensor:
            wide = x[:, :, None].expand(-1, -1, take.shape[2], -1, -1)
            return wide.gather(3, take.expand(-1, -1, -1, -1, x.shape[3])).flatten(0, 1)

        rule = Rule(Causal() if self.causal_inside else Everything(), call.rule.score)
        parts = call.replace(q=gathered(call.q), k=gathered(k), v=gathered(v), rule=rule)
        seen = self.attend(parts).unflatten(0, call.q.shape[:2]).flatten(2, 3)
        places = take.flatten(2, 3)
        total = torch.zeros_like(v).scatter_add(2, places.expand_as(seen), seen)
        count = torch.zeros_like(v[..., :1]).scatter_add(2, places, torch.ones_like(seen[..., :1]))
        return total / count.clamp_min(1)
