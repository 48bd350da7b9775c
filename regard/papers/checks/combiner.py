"""Weights written out are rows of one over all the past, and give the layer's output."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.layers.attention import Attention, joined
from regard.layers.combiner import Combiner
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap


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


@check("combiner", beyond="the log-sparse and axial patterns")
def combiner() -> Claims:
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
    yield claim("The expanded weight matrix", "distance of row sums from 1", sums).within(
        1e-5, "1", because=FLOAT32
    )
    yield claim(
        "The expanded weight matrix", "positive on the whole past and nowhere else", support
    ).equals(True, "full causal support")
    yield claim("multiplying W V", "difference of the layer", written).within(
        1e-5, "the matrix times V", because=CATALOGUE
    )
    yield claim("Spans of one token", "difference", exact).within(
        1e-5, "softmax attention", because=FLOAT32
    )
