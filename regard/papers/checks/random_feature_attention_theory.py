"""Random heads learn averages over keys from fewer examples than a random net of their size."""

from __future__ import annotations

import torch

from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import seed
from regard.papers.shared.measure import gap
from regard.tasks.averages import KeyAverage, RandomHeads, RandomNet, ridge_error


@check(
    "random_feature_attention_theory",
    beyond="the theorems; d = N = 8, 400 heads, 1,500 samples",
)
def random_heads() -> Claims:
    """Random heads learn averages over keys from fewer examples than a random net of their size."""
    width, points, heads, samples = 8, 8, 400, 1500
    feats = RandomHeads(width, heads, seed=seed())
    biased = RandomHeads(width, heads, biased=True, seed=seed())
    net = RandomNet(width, points, heads * (width + 1), seed=seed())
    x, keys = torch.randn(5, 1, width), torch.randn(5, points, width)
    shuffled = keys[:, torch.randperm(points)]
    moved = gap(feats.features(x, keys), feats.features(x, shuffled))
    moved_net = gap(net.features(x, keys), net.features(x, shuffled))
    weights = (1e-6, 1e-4, 1e-2, 1.0)
    errors: dict[tuple[str, int], float] = {}
    for power in (0, 2):
        task = KeyAverage(width=width, points=points, power=power)
        train, test = task.batch(samples, seed()), task.batch(1000, seed())
        for name, made in (("heads", feats), ("biased heads", biased), ("net", net)):
            sides = []
            for batch in (train, test):
                assert batch.context is not None
                sides.append((made.features(batch.x, batch.context), batch.y[:, 0, 0]))
            errors[name, power] = ridge_error(sides[0], sides[1], weights)
            if name == "biased heads":
                half = (sides[0][0][: samples // 2], sides[0][1][: samples // 2])
                errors["half the samples", power] = ridge_error(half, sides[1], weights)
    yield claim("Features are invariant", "change by shuffled keys", moved).within(
        1e-5, "none", because=FLOAT32
    )
    yield claim("Features are invariant", "change by shuffled keys, a random net", moved_net).above(
        moved, "that of heads", times=1000, because="or shuffling would be nothing"
    )
    yield claim(
        "ridge regression on attention",
        "share of variance missed, heads, mean of points",
        errors["heads", 0],
    ).below(errors["net", 0], "two-layer random features of equal count")
    yield claim(
        "ridge regression on attention",
        "share of variance missed, heads, second power",
        errors["heads", 2],
    ).below(errors["net", 2], "two-layer random features of equal count")
    yield claim(
        "biased W needs fewer",
        "share of variance missed, biased heads, second power",
        errors["biased heads", 2],
    ).below(errors["heads", 2], "zero-mean W")
    yield claim(
        "biased W needs fewer",
        "share of variance missed from half the samples, biased heads, second power",
        errors["half the samples", 2],
        over="median",
    ).below(errors["heads", 2], "zero-mean W from all of them")
