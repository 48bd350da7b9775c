"""Attention within clusters of tokens, beside local heads (routing transformer)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.features import standardized
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.score import KeyWeights
from regard.core.support import Causal, Everything, Window
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
    """Half the heads attend within clusters, the others to what is near.

    In a routing head every one of `clusters` centers takes its top n / clusters queries and keys,
    which share one projection, scaled to length sqrt(d). Softmax is within a cluster, and a token
    in several gets the mean of their outputs (zero in none). Centers are moving averages, updated
    without gradient while training. The last `local_heads` (half, unless given) have keys of their
    own and attend `window` tokens back, and as many ahead. Of padded sequences, only real tokens
    have places in clusters, n / clusters of each sequence's own length.

    Membership depends on the whole sequence, future included, so the layer does not claim to be
    causal, nor to decode; `causal_inside=True`, as in the paper's language models, makes attention
    inside a cluster, and of the local heads, causal. The paper has no cross-attention.

    >>> RoutedAttention(32, heads=4, clusters=3)(torch.randn(1, 12, 32)).shape
    torch.Size([1, 12, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, decode=False, documents=False,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "clusters": 3, "window": 5}
    centers: Tensor

    def __init__(
        self, dim: int, heads: int, *, clusters: int = 16, local_heads: int | None = None,
        window: int = 256, keep: float = 0.999, causal_inside: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "kv_heads", "support", "weigh")
        need_size("clusters", clusters)
        need_size("window", window)
        need_size("heads", heads)
        local = heads // 2 if local_heads is None else local_heads
        if not isinstance(local, int) or not 0 <= local < heads:
            fail(
                ValueRangeError,
                "local_heads",
                local,
                f"0 to {heads - 1}",
                "leave one head to route",
            )
        if not 0 <= keep < 1:
            fail(ValueRangeError, "keep", keep, "a share from 0 up to 1", "the paper keeps 0.999")
        self.local_heads, self.routed = local, heads - local
        super().__init__(dim, heads, **settings)
        self.takes_no_bias_of_position("every cluster is attended to on its own")
        self.keep, self.causal_inside = keep, causal_inside
        self.near = Window(window) & (Causal() if causal_inside else Everything())
        self.register_buffer("centers", torch.randn(self.routed, clusters, self.head_dim))

    def make_projections(self, bias: bool) -> None:
        """Build one projection for queries and keys; keys of the local heads have their own."""
        super().make_projections(bias)
        del self.to_k
        if self.local_heads:
            self.to_k = nn.Linear(self.context_dim, self.local_heads * self.head_dim, bias)

    def queries(self, x: Tensor) -> Tensor:
        """Scale queries of routing heads to length sqrt(d)."""
        routed, local = super().queries(x).split((self.routed, self.local_heads), 1)
        return torch.cat((standardized(routed), local), 1)

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Scale keys of routing heads to length sqrt(d)."""
        shared = self.to_q(context)[..., : self.routed * self.head_dim]
        k = standardized(split(shared, self.routed))
        if self.local_heads:
            k = torch.cat((k, split(self.to_k(context), self.local_heads)), 1)
        return k, split(self.to_v(context), self.heads)

    def members(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens of each cluster, in order, and which of the places are taken.

        x [b, h, n, d] of routing heads to two of [b, h, clusters, w]. Where `real` [b, n] marks
        padding, clusters of shorter sequences have fewer members, and places that stay empty.
        """
        n, clusters = x.shape[2], self.centers.shape[1]
        scores = self.centers @ x.mT
        width = -(-n // clusters)
        if real is None:
            found = scores.topk(width, dim=-1).indices.sort(-1).values
            return found, torch.ones_like(found, dtype=torch.bool)
        scores = scores.masked_fill(~real[:, None, None], -torch.inf)
        found = scores.topk(width, dim=-1).indices
        count = -(-real.sum(1) // clusters)[:, None, None, None]
        taken = (torch.arange(width, device=x.device) < count).expand_as(found)
        # Empty places come last, so that those taken stay in order.
        order = found.masked_fill(~taken, n).argsort(-1)
        return found.gather(-1, order), taken.gather(-1, order)

    @torch.no_grad()
    def follow(self, x: Tensor, real: Tensor | None = None) -> None:
        """Move each center towards the tokens that are nearest to it."""
        near = F.one_hot((x @ self.centers.mT).argmax(-1), self.centers.shape[1]).to(x.dtype)
        if real is not None:
            near = near * real[:, None, :, None]
        sums, counts = (near.mT @ x).sum(0), near.sum((0, 2))[..., None]
        means = torch.where(counts > 0, sums / counts.clamp_min(1), self.centers)
        self.centers.lerp_(means.to(self.centers), 1 - self.keep)

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend inside clusters, and nearby in the local heads."""
        if not self.local_heads:
            return self.within_clusters(call, input.padding)
        parts = [
            call.replace(**{name: getattr(call, name)[:, some] for name in "qkv"})
            for some in (slice(self.routed), slice(self.routed, None))
        ]
        local = parts[1].replace(rule=call.rule.replace(support=call.rule.support & self.near))
        return torch.cat((self.within_clusters(parts[0], input.padding), self.attend(local)), 1)

    def within_clusters(self, call: Call, real: Tensor | None) -> Tensor:
        """Gather clusters, attend inside them, and average the outputs of each token."""
        if keeps_statistics(self):
            self.follow(call.q, real)
        take, taken = self.members(call.q, real)
        take = take[..., None]  # [b, h, clusters, w, 1]

        def gathered(x: Tensor) -> Tensor:
            wide = x[:, :, None].expand(-1, -1, take.shape[2], -1, -1)
            return wide.gather(3, take.expand(-1, -1, -1, -1, x.shape[3])).flatten(0, 1)

        score = call.rule.score
        if real is not None:
            empty = torch.zeros_like(taken, dtype=call.q.dtype).masked_fill(~taken, -torch.inf)
            score = score + KeyWeights(empty.flatten(0, 1))
        rule = Rule(Causal() if self.causal_inside else Everything(), score)
        parts = call.replace(q=gathered(call.q), k=gathered(call.k), v=gathered(call.v), rule=rule)
        seen = self.attend(parts).unflatten(0, call.q.shape[:2])
        seen = seen.masked_fill(~taken[..., None], 0).flatten(2, 3)
        places, ones = take.flatten(2, 3), taken[..., None].to(seen.dtype).flatten(2, 3)
        total = torch.zeros_like(call.v).scatter_add(2, places.expand_as(seen), seen)
        count = torch.zeros_like(call.v[..., :1]).scatter_add(2, places, ones)
        return total / count.clamp_min(1)
