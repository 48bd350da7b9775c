"""Overlaps are what counting gives, and a softmax comes near to them."""

from __future__ import annotations

from itertools import pairwise

import torch

from regard.layers.sparse_distributed import SparseDistributed, fitted_beta, overlap
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.measure import gap


@check(
    "sdm_attention",
    beyond="betas of GPT-2 and of query-key norm models; `Beta` reads those of any model",
)
def memory() -> Claims:
    """Overlaps are what counting gives, and a softmax comes near to them."""
    bits = 12
    addresses = torch.arange(1 << bits)
    ones = sum((addresses >> bit) & 1 for bit in range(bits))
    wrong = 0
    for radius in range(bits + 1):
        near = ones <= radius
        for v, count in enumerate(overlap(bits, radius)):
            other = addresses ^ ((1 << v) - 1)
            wrong += int((near & (ones[other] <= radius)).sum()) != count

    v = torch.arange(33, dtype=torch.float64)
    alike, rises = {}, 0
    for radius in range(24, 31):
        shares = torch.tensor([x / overlap(64, radius)[0] for x in overlap(64, radius)[:33]])
        beta = fitted_beta(64, radius)
        soft = torch.exp(-2 * beta / 64 * v)
        alike[radius] = float(torch.corrcoef(torch.stack([shares.double(), soft]))[0, 1])
        counts = overlap(64, radius)
        rises += sum(b > a for a, b in pairwise(counts))

    # Patterns of 16 bits through a layer that changes nothing by itself.
    layer = SparseDistributed(16, heads=1, bits=16, radius=6, context_dim=16)
    with torch.no_grad():
        for part in (layer.to_q, layer.to_k, layer.to_v, layer.to_out):
            part.weight.copy_(torch.eye(16))
        patterns, asked = (torch.randint(0, 2, (x, 16)) * 2.0 - 1 for x in (9, 5))
        shares = torch.tensor(overlap(16, 6)).float()[(asked[:, None] != patterns).sum(-1)]
        wanted = shares @ patterns / shares.sum(1, keepdim=True)
        apart = gap(layer(asked[None], patterns[None])[0], wanted)

    radius, at = 26, 4
    share = overlap(64, radius)[at] / 2**64
    other = torch.zeros(64)
    other[:at] = 1
    errors = []
    for neurons in (250, 4000):
        found = []
        for _ in range(200):
            drawn = torch.randint(0, 2, (neurons, 64)).float()
            both = (drawn.sum(1) <= radius) & ((drawn != other).sum(1) <= radius)
            found.append(float(both.float().mean()) - share)
        errors.append(float(torch.tensor(found).square().mean().sqrt()))
    yield claim("For n=12", "wrong counts of every distance and radius", wrong).equals(
        0, "brute force over 4,096 addresses"
    )
    yield claim("for n=64", "least correlation, radii 24 to 30", min(alike.values())).above(
        0.985, "the catalogue's bound", because=CATALOGUE
    )
    yield claim(
        "monotone non-increasing", "rises of overlap(v), n = 64, radii 24 to 30", rises
    ).equals(0, "none")
    yield claim("sampled-neuron estimate", "error of 250 neurons", errors[0]).within(
        0.4 * 4 * errors[1],
        "4 times that of 4,000",
        value=4 * errors[1],
        because="200 draws of each know the ratio of their spreads to 7%: six times that",
    )
    yield claim("for n=64", "difference of the layer, 16 bits", apart).within(
        1e-4,
        "patterns weighed by their overlaps",
        because="softmax with a mask of logarithms, float32",
    )
