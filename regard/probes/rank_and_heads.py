"""Rank against number of heads: finding the nearest of n points takes one head of full rank.

For points x_i and a query y on the unit sphere, the target is argmin_i |x_i - y|, which is
argmax_i x_i . y. One head with identity weights and a sharp softmax gives it at any length;
heads whose queries and keys have r < d channels need exponentially many (Amsel 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.method import method
from regard.core.score import Dot
from regard.layers.attention import Attention


def nearest(points: Tensor, query: Tensor) -> Tensor:
    """The point nearest to each query: points [b, n, d], query [b, d] to [b, d].

    >>> nearest(torch.eye(3)[None], torch.tensor([[0.1, 0.9, 0.0]])).tolist()
    [[0.0, 1.0, 0.0]]
    """
    place = torch.cdist(query[:, None], points)[:, 0].argmin(-1)
    return points[torch.arange(len(points)), place]


def sphere(rows: int, points: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw points [b, n, d] and queries [b, d] on the sphere, with the nearest points [b, d]."""
    x = F.normalize(torch.randn(rows, points, dim), dim=-1)
    y = F.normalize(torch.randn(rows, dim), dim=-1)
    return x, y, nearest(x, y)


@method(
    "rank_vs_heads",
    call="from regard.probes.rank_and_heads import full_rank_head, mean_error, sphere\n"
    "error = mean_error(full_rank_head(16), *sphere(100, 8, 16))",
)
def full_rank_head(dim: int, sharpness: float = 200.0) -> Attention:
    """One head that finds the nearest point: identity weights, softmax of sharpness y . x.

    >>> mean_error(full_rank_head(8), *sphere(64, 5, 8)).item() < 0.05
    True
    """
    layer = Attention(dim, 1, head_dim=dim, context_dim=dim, score=Dot(sharpness))
    with torch.no_grad():
        for part in (layer.to_q, layer.to_k, layer.to_v, layer.to_out):
            part.weight.copy_(torch.eye(dim))
    return layer


def of_rank(dim: int, rank: int, heads: int) -> Attention:
    """Heads whose queries and keys have `rank` channels and whose values have d / heads.

    At `rank * heads = d` the weights are as many as those of one full head.
    """
    return Attention(dim, heads, head_dim=rank, value_dim=max(1, dim // heads), context_dim=dim)


def mean_error(layer: Attention, points: Tensor, query: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over points and coordinates; a point at random has about 2 / d."""
    return (layer(query[:, None], points)[:, 0] - target).square().mean()


__all__ = ["full_rank_head", "mean_error", "nearest", "of_rank", "sphere"]
