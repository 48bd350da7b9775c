"""Features equal the polynomial written out; weights of order 2 are positive."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.layers.attention import split
from regard.layers.polynomial import Fastmax
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.linear_cost import flops_ratio, scene_of, traffic_ratio, written_out
from regard.papers.shared.measure import gap


def _plain(layer: Fastmax, x: Tensor) -> Tensor:
    """Scores of a layer, every pair, standardized where the layer does."""
    q, k = split(layer.to_q(x), layer.heads), split(layer.to_k(x), layer.heads)
    if layer.standardize:
        q, k = ((y - y.mean(-1, True)) / y.std(-1, correction=0, keepdim=True) for y in (q, k))
    return q @ k.mT


@check("fastmax")
def fastmax() -> Claims:
    """Features equal the polynomial written out; weights of order 2 are positive."""
    worst, least, sums = 0.0, float("inf"), 0.0
    for order in (1, 2):
        for causal in (True, False):
            layer = Fastmax(32, heads=2, order=order, causal=causal, standardize=order == 2)
            with torch.no_grad():  # order 1 needs small scores for positive sums
                layer.to_q.weight.mul_(1.0 if order == 2 else 0.3)
            layer, x = layer.double(), torch.randn(1, 30, 32).double()
            q, (k, v) = layer.queries(x), layer.keys(x)
            s = _plain(layer, x)
            weights = 1 + s + (s.square() / 2 if order == 2 else 0)
            seen = layer.look(q, k, v, scene_of(x))
            worst = max(worst, gap(seen, written_out(weights, v, causal)))
            if order == 2:
                least = min(least, float(weights.detach().min()))
                ones = layer.look(q, k, torch.ones_like(v), scene_of(x))
                sums = max(sums, gap(ones, torch.ones_like(v)))
    gaps = []
    q, k, v = (torch.randn(1, 1, 20, 8).double() for _ in range(3))
    for order in (1, 2):
        errors = []
        for eps in (0.002, 0.001):  # small enough that the first term left out is the gap
            s = eps * (q @ k.mT)
            taylor = 1 + s + (s.square() / 2 if order == 2 else 0)
            errors.append(gap(written_out(taylor, v, False), s.softmax(-1) @ v))
        gaps.append(errors[0] / errors[1])
    yield claim("Linear form equals", "largest difference from the n x n matrix", worst).within(
        1e-5, "the polynomial written out", because=CATALOGUE
    )
    yield claim("p=2 weights", "least weight", least).above(0, "zero")
    yield claim("p=2 weights", "distance of row sums from 1", sums).within(
        1e-5, "1", because=FLOAT64
    )
    yield claim("with standardisation off", "gap to softmax, p = 1, scores halved", gaps[0]).within(
        0.2,
        "2^(p + 1)",
        value=4,
        because="the next order of the series is a hundredth at scores of 0.002 q k: 5 of it",
    )
    yield claim("with standardisation off", "gap to softmax, p = 2, scores halved", gaps[1]).within(
        0.4,
        "2^(p + 1)",
        value=8,
        because="the next order of the series is a hundredth at scores of 0.002 q k: 5 of it",
    )
    yield claim(
        "time is linear",
        "operations a token at 8k, d = 16",
        flops_ratio(Fastmax(32, heads=2), 1024),
    ).at_most(1, "at 1k", times=1.05, because="a quadratic term would make it 8 times")
    yield claim(
        "time is linear",
        "bytes read and written a token at 8k, d = 16",
        traffic_ratio(Fastmax(32, heads=2), 1024),
    ).at_most(1, "at 1k", times=1.05, because="a quadratic term would make it 8 times")
