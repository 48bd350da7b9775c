"""Weights stay as they are, distances follow dot products, and partners are neighbors."""

from __future__ import annotations

import torch

from regard.analysis.similarity import joint_embedding
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.measure import gap
from regard.probes.position_heads import correlation, ranks


@check("attentionviz", beyond="t-SNE and UMAP: places are by principal components")
def joint() -> Claims:
    """Weights stay as they are, distances follow dot products, and partners are neighbors."""
    q, k = 0.2 * torch.randn(80, 16) + 2, 4 * torch.randn(90, 16) - 1
    before = (q.double() @ k.double().T).softmax(1)
    same = 0.0
    for scales in ([0.1], [1.0], [7.0], None):
        made = joint_embedding(q, k, scales)
        same = max(same, gap((made.q @ made.k.T).softmax(1), before))
    made = joint_embedding(q, k)
    moved = k.double() + made.shift
    fits = []
    for c in (1.0, made.scale):
        near = -torch.cdist(c * q.double(), moved / c)
        dots = ranks((q.double() @ moved.T).flatten()[:, None])
        fits.append(float(correlation(dots, ranks(near.flatten()[:, None]))[0, 0]))
    q2, k2 = 0.2 * torch.randn(80, 16) + 2, 4 * torch.randn(90, 16) - 1 + made.shift.float()
    dots = ranks((q2 @ k2.T).flatten()[:, None])
    fresh = [
        float(correlation(dots, ranks(-torch.cdist(c * q2, k2 / c).flatten()[:, None]))[0, 0])
        for c in (1.0, made.scale)
    ]
    side = torch.tensor([1.0] * 20 + [-1.0] * 20)[:, None]
    sides = [torch.cat([3 * side, 0.1 * torch.randn(40, 7)], 1) for _ in range(2)]
    nearest = torch.cdist(*joint_embedding(*sides).places()).argmin(1)
    together = float(((nearest < 20) == (torch.arange(40) < 20)).double().mean())
    yield claim("Attention matrices", "largest difference over scales and shifts", same).within(
        1e-5, "the weights before", because=CATALOGUE
    )
    yield claim("for the chosen c", "Spearman correlation", fits[1]).at_least(fits[0], "c = 1")
    yield claim(
        "for the chosen c", "the same on vectors that did not choose it", fresh[1]
    ).at_least(fresh[0], "c = 1")
    yield claim("for a planted two-group", "queries beside keys of their group", together).equals(
        1.0, "all"
    )
