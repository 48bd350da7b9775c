"""Checks of rows that gather tokens: into clusters, and into spans."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.attention import Attention, joined
from regard.layers.clustered import RoutedAttention
from regard.layers.combiner import Combiner
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap


@check("routing_transformer")
def routing() -> Measured:
    """One cluster is full attention; clusters are of one size; near tokens share a cluster."""
    layer, x = RoutedAttention(32, heads=2, clusters=1), torch.randn(2, 30, 32)
    q, (k, v) = layer.queries(x), layer.keys(x)
    full = layer.to_out(joined(F.scaled_dot_product_attention(q, k, v)))
    one = gap(layer(x), full)
    layer = RoutedAttention(32, heads=2, clusters=5)
    members = layer.members(layer.queries(x))
    exact = list(members.shape[2:]) == [5, 6] and all(
        len(set(row.tolist())) == 6 for row in members.flatten(0, 2)
    )
    # Tokens from 32 directions, centers learned by following them.
    torch.manual_seed(0)
    layer = RoutedAttention(64, heads=1, clusters=32, keep=0.9).train()
    with torch.no_grad():
        layer.to_k.weight.copy_(torch.eye(64))
    directions = torch.randn(32, 64)
    tokens = directions[torch.randint(0, 32, (1, 1024))] + 0.3 * torch.randn(1, 1024, 64)
    q = layer.queries(tokens)
    for _ in range(60):
        layer.follow(q)
    weights = (q[0, 0] @ q[0, 0].T / 8).softmax(-1)
    best = weights.masked_fill(torch.eye(1024, dtype=torch.bool), 0).argmax(-1)
    taken = F.one_hot(layer.members(q)[0, 0], 1024).sum(1).bool()  # [clusters, tokens]
    shares = (taken[:, :, None] & taken[:, None]).any(0)
    together = float(shares.gather(1, best[:, None]).float().mean())
    mass = float((weights * shares).sum(-1).mean())
    near = (torch.arange(1024)[:, None] - torch.arange(1024)).abs() <= 16
    local = float(near.gather(1, best[:, None]).float().mean())
    return Measured(
        "one cluster of all tokens is full attention with shared normalized queries and keys; "
        "every cluster has w members; of 1,024 tokens from 32 directions most share a cluster "
        "with the key they attend to most, few a local window of the same width",
        one < 1e-5 and exact and together > 0.7 and mass > 0.6 and local < 0.1,
        {"one cluster": one, "best key in the cluster": together, "mass in the cluster": mass,
         "best key in the window": local},
        left_out="a causal choice: the layer says it is not causal",
    )  # fmt: skip


def _written_out(layer: Combiner, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of every pair, [b, h, n, n], from the paper's factors, and the values."""
    q, (k, v) = layer.queries(x), layer.keys(x)
    n, size, scale = x.shape[1], layer.block, layer.head_dim**-0.5
    weights = torch.zeros(*q.shape[:2], n, n)
    for i in range(n):
        own = i // size
        direct = list(range(own * size, i + 1))
        logits = [torch.einsum("bhd,bhd->bh", q[:, :, i], k[:, :, j]) * scale for j in direct]
        spans = [slice(r * size, (r + 1) * size) for r in range(own)]
        for s in spans:
            logits.append(torch.einsum("bhd,bhd->bh", q[:, :, i], k[:, :, s].amax(2)) * scale)
        p = torch.stack(logits, -1).softmax(-1)
        for place, j in enumerate(direct):
            weights[:, :, i, j] = p[..., place]
        for place, s in enumerate(spans):
            inside = torch.einsum("bhd,bhnd->bhn", q[:, :, s].amax(2), k[:, :, s]) * scale
            weights[:, :, i, s] = p[..., len(direct) + place, None] * inside.softmax(-1)
    return weights, v


@check("combiner")
def combiner() -> Measured:
    """Weights written out are rows of one over all the past, and give the layer's output."""
    layer, x = Combiner(32, heads=2, block=4), torch.randn(1, 18, 32)
    with torch.no_grad():
        weights, v = _written_out(layer, x)
        written = gap(layer(x), layer.to_out(joined(weights @ v)))
    sums = gap(weights.sum(-1), torch.ones(1, 2, 18))
    past = torch.ones(18, 18, dtype=torch.bool).tril()
    support = bool((weights[..., past] > 0).all() and (weights[..., ~past] == 0).all())
    single = Combiner(32, heads=2, block=1)
    plain = Attention(32, heads=2, causal=True)
    plain.load_state_dict(single.state_dict())
    exact = gap(single(x), plain(x))
    sizes = []
    for n in (40, 80):
        memory = layer.memory()
        with torch.no_grad():
            layer(torch.randn(1, n, 32), memory=memory)
        sizes.append(memory.nbytes)
    return Measured(
        "the implied weights sum to 1, are positive on the whole past and nowhere else, and times "
        "the values give the output; spans of one token are exact softmax attention; a decoder "
        "keeps two vectors for each finished block",
        max(written, sums, exact) < 1e-5 and support,
        {"written out": written, "sums": sums, "spans of one": exact,
         "bytes at 40": sizes[0], "bytes at 80": sizes[1]},
        left_out="the log-sparse and axial patterns",
    )  # fmt: skip
