"""One cluster is full attention; clusters are of one size; near tokens share a cluster."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regard.layers.attention import joined
from regard.layers.clustered import RoutedAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap


@torch.no_grad()
def _found() -> tuple[float, float, float]:
    """Shares of best keys and of weight in the clusters, of best keys near, in one draw.

    1024 tokens from 32 directions; centers have learned by following them.
    """
    layer = RoutedAttention(64, heads=1, clusters=32, keep=0.9).train()
    layer.to_q.weight.copy_(torch.eye(64))
    directions = torch.randn(32, 64)
    tokens = directions[torch.randint(0, 32, (1, 1024))] + 0.3 * torch.randn(1, 1024, 64)
    q = layer.queries(tokens)
    for _ in range(60):
        layer.follow(q)
    weights = (q[0, 0] @ q[0, 0].T / 8).softmax(-1)
    best = weights.masked_fill(torch.eye(1024, dtype=torch.bool), 0).argmax(-1)
    taken = F.one_hot(layer.members(q)[0][0, 0], 1024).sum(1).bool()  # [clusters, tokens]
    shares = (taken[:, :, None] & taken[:, None]).any(0)
    near = (torch.arange(1024)[:, None] - torch.arange(1024)).abs() <= 16
    together, local = (x.gather(1, best[:, None]).float().mean() for x in (shares, near))
    return float(together), float((weights * shares).sum(-1).mean()), float(local)


@check("routing_transformer", beyond="a causal choice of clusters")
def routing() -> Claims:
    """One cluster is full attention; clusters are of one size; near tokens share a cluster."""
    layer, x = RoutedAttention(32, heads=2, clusters=1), torch.randn(2, 30, 32)
    q, (k, v) = layer.queries(x), layer.keys(x)
    full = layer.to_out(joined(F.scaled_dot_product_attention(q, k, v)))
    one = gap(layer(x), full)
    layer = RoutedAttention(32, heads=2, clusters=5)
    members, taken = layer.members(layer.queries(x)[:, : layer.routed])
    exact = (
        bool(taken.all())
        and list(members.shape[2:]) == [5, 6]
        and all(len(set(row.tolist())) == 6 for row in members.flatten(0, 2))
    )
    # Shares move by a twentieth from one set of directions to the next: a mean of eight.
    together, mass, local = torch.tensor([_found() for _ in range(8)]).mean(0).tolist()
    yield claim("k=1, w=n", "difference", one).within(
        1e-5, "full attention with shared normalized q and k", because=FLOAT32
    )
    yield claim(
        "every cluster has", "clusters of 6 different members, 5 in each head", exact
    ).equals(True, "all")
    yield claim("On 1024 tokens", "best key in the cluster", together, over="median").above(
        0.75, "about 82%, as the catalogue saw", because="within the spread of other directions"
    )
    yield claim("On 1024 tokens", "mass in the cluster", mass, over="median").above(
        0.7, "about 79%, as the catalogue saw", because="within the spread of other directions"
    )
    yield claim("On 1024 tokens", "best key in a local window of equal width", local).below(
        0.06,
        "the catalogue saw 2-3%",
        because="33 of 1,024 keys are 3%, and as much for the spread",
    )
