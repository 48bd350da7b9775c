"""Weights written out are convex of rank L; the recurrence is the whole, far keys included."""

from __future__ import annotations

import torch

from regard.layers.attention import joined, split
from regard.layers.latent import Latte
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.linear_cost import decode_bytes, step_cost
from regard.papers.shared.measure import gap


@check("latte")
def latte() -> Claims:
    """Weights written out are convex of rank L; the recurrence is the whole, far keys included."""
    layer, x = Latte(32, heads=2, latents=5, causal=True).double(), torch.randn(1, 24, 32).double()
    scores = split(layer.to_k(x), 2).transpose(-1, -2)  # [b, h, l, n]
    over = scores[..., None, :].expand(-1, -1, -1, 24, -1)
    causal = torch.ones(24, 24, dtype=torch.bool).tril()
    per_latent = over.masked_fill(~causal, -torch.inf).softmax(-1)  # p(s | l, t)
    shares = split(layer.to_q(x), 2).softmax(-1)
    weights = torch.einsum("bhtl,bhlts->bhts", shares, per_latent)
    seen = layer.to_out(joined(weights @ split(layer.to_v(x), 2)))
    written = gap(layer(x), seen)
    sums, least = gap(weights.sum(-1), torch.ones(1, 2, 24).double()), float(weights.min())
    ahead = Latte(32, heads=2, latents=5).double()
    both = split(ahead.to_q(x), 2).softmax(-1) @ split(ahead.to_k(x), 2).softmax(2).mT
    rank = int(torch.linalg.matrix_rank(both).max())
    ahead_gap = gap(ahead(x), ahead.to_out(joined(both @ split(ahead.to_v(x), 2))))
    sums_ahead, least_ahead = gap(both.sum(-1), torch.ones(1, 2, 24).double()), float(both.min())
    early, late = (step_cost(Latte(32, heads=2, latents=5, causal=True), n) for n in (256, 4096))
    with torch.no_grad():
        layer.to_k.bias = torch.nn.Parameter(torch.full((10,), 80.0).double())
    memory = layer.memory()
    with torch.no_grad():
        steps = torch.cat([layer(x[:, i : i + 1], memory=memory) for i in range(24)], 1)
    decoded = gap(steps, layer(x))
    held = [decode_bytes(Latte(32, heads=2, latents=5, causal=True), n) for n in (8, 128)]
    yield claim("Materialise the T x T", "distance of row sums from 1", sums).within(
        1e-6, "1", because=FLOAT64
    )
    yield claim("Materialise the T x T", "least weight", least).at_least(0, "zero")
    # A causal mask gives each row a softmax of its own over keys: rank is that of the whole matrix.
    yield claim("Materialise the T x T", "rank of 5 latents, without a mask", rank).at_most(
        5, "the number of latents", because=CATALOGUE
    )
    yield claim(
        "Materialise the T x T", "the same, distance of row sums from 1", sums_ahead
    ).within(1e-6, "1", because=FLOAT64)
    yield claim("Materialise the T x T", "the same, least weight", least_ahead).at_least(0, "zero")
    yield claim("Materialise the T x T", "the same, difference of the layer", ahead_gap).within(
        1e-6, "the weights written out", because=FLOAT64
    )
    yield claim("Materialise the T x T", "difference of the layer", written).within(
        1e-6, "the weights written out", because=FLOAT64
    )
    yield claim("Recurrent form equals", "difference of decoding, keys 80 higher", decoded).within(
        1e-5, "the parallel form", because=CATALOGUE
    )
    yield claim("Time per decoded token", "bytes after 128 tokens", held[1]).equals(
        held[0], "after 8"
    )
    yield claim("Time per decoded token", "operations of a step at 4,096", late[0]).equals(
        early[0], "at 256"
    )
    yield claim(
        "Time per decoded token", "bytes that a step at 4,096 reads and writes", late[1]
    ).equals(early[1], "at 256")
