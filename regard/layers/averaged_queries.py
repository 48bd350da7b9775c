"""Queries averaged over the last items, beside single ones (MQSA)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.keys import Dense
from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.convolution import taps
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.positions import Learned
from regard.layers.registry import register
from regard.layers.stack import Block


@register("averaged_queries")
class AveragedQueries(Attention):
    """The query of a token is projected from the mean of the last `length` tokens; keys are not.

    >>> AveragedQueries(32, heads=4, length=3)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, multihead_weights=True
    )
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "length": 3}

    def __init__(
        self, dim: int, heads: int, *, length: int = 3, causal: bool = True, **settings: Any
    ) -> None:
        need_size("length", length)
        super().__init__(dim, heads, causal=causal, **settings)
        self.length = length

    def averaged(self, input: LayerInput) -> Tensor:
        """Average each token with the real ones before it in its document: [b, n, dim]."""
        marked = torch.cat((input.x, torch.ones_like(input.x[..., :1])), -1)
        total = taps(marked, self.length, input, "items", causal=True).sum(2)
        return total[..., :-1] / total[..., -1:].clamp_min(1)

    def read(self, input: LayerInput) -> tuple[Tensor, Dense]:
        """Build queries of averaged tokens, and keys of single ones."""
        q = self.queries(self.averaged(input))
        k, v = self.keys(input.x)
        if self._normed:
            q, k = self.norm_q(q), self.norm_k(k)
        return self.positioned_and_kept(q, k, v, input)


@method(
    "mqsa_ted",
    call="import regard\nfrom regard.layers.averaged_queries import Recommender\n"
    "model = Recommender(items=1000, length=3)",
)
class Recommender(nn.Module):
    """Score the next item from single queries and from means of the last `length` (MQSA-TED).

    Two branches, each with weights of its own, score all items; `share` of the score is the first
    one's. Item 0 is padding.

    >>> Recommender(items=10, dim=16)(torch.tensor([[0, 3, 5, 2]])).shape
    torch.Size([1, 4, 11])
    """

    def __init__(
        self, *, items: int, dim: int = 64, heads: int = 1, length: int = 3, share: float = 0.5,
        longest: int = 50, blocks: int = 1, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        need_size("items", items)
        self.share, self.dim = share, dim
        self.items = nn.Embedding(items + 1, dim, padding_idx=0)
        nn.init.normal_(self.items.weight, std=dim**-0.5)
        self.places = Learned(dim, longest)

        def branch(length: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(
                    AveragedQueries(dim, heads, length=length, dropout=dropout),
                    feed_forward=nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)),
                    norm=nn.LayerNorm,
                    dropout=dropout,
                )
                for _ in range(blocks)
            )

        self.short, self.long = branch(1), branch(length)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score the next item at each position: [b, n] to [b, n, items + 1]."""
        real = tokens > 0
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = (self.items(tokens) * self.dim**0.5 + self.places(places)) * real[..., None]
        scores = []
        for branch in (self.short, self.long):
            y = x
            for block in branch:
                y = block(y, padding=real)
            scores.append(y @ self.items.weight.T)
        return torch.lerp(scores[1], scores[0], self.share)

    def transition_loss(self, chosen: Tensor, transitions: Tensor, warmth: float = 0.1) -> Tensor:
        """Distill which items follow `chosen` [k] from counts [items + 1, items + 1]."""
        counts = transitions[chosen].float()
        target = (counts / counts.amax(-1, keepdim=True).clamp_min(1) / warmth).softmax(-1)
        own = self.dim**0.5 * self.items(chosen) @ self.items.weight.T / warmth
        return F.cross_entropy(own, target)


def transitions(tokens: Tensor, items: int) -> Tensor:
    """Count which item follows which in tokens [b, n]: [items + 1, items + 1], padding left out.

    >>> transitions(torch.tensor([[0, 1, 2, 1, 2]]), 2)[1].tolist()
    [0, 0, 2]
    """
    first, second = tokens[:, :-1].flatten(), tokens[:, 1:].flatten()
    real = (first > 0) & (second > 0)
    counts = torch.zeros((items + 1) ** 2, dtype=torch.long, device=tokens.device)
    both = (first * (items + 1) + second)[real]
    return counts.scatter_add(0, both, torch.ones_like(both)).view(items + 1, items + 1)
