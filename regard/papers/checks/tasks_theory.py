"""Checks of rows of theory: what heads learn to regress, and what rank and random heads can do."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from regard.core.rule import Rule
from regard.core.score import Dot
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import draws, fit
from regard.run.api import attend
from regard.tasks.averages import KeyAverage, RandomHeads, RandomNet, ridge_error
from regard.tasks.base import Batch
from regard.tasks.nearest import Nearest
from regard.tasks.regression import InContextRegression, RegressionHeads, debiased_step


def _trained(task: InContextRegression, heads: int, steps: int) -> RegressionHeads:
    made = RegressionHeads(task.width, heads, start=0.1)
    drawn = draws()

    def loss() -> Tensor:
        batch = task.batch(128, next(drawn))
        return (made(batch.x) - batch.y[:, -1, 0]).square().mean()

    fit(made.parameters(), loss, steps, 5e-3)
    return made


def _risk(answer: Tensor, batch: Batch) -> float:
    return float((answer - batch.y[:, -1, 0]).square().mean())


@check("icl_multihead_regression")
def regression() -> Measured:
    """Two heads learn opposite scaled identities, and with them a debiased step of descent."""
    task = InContextRegression(width=4, examples=32, noise=0.1)
    test = task.batch(4000, 10**7)
    one, two = (_trained(task, heads, 2000) for heads in (1, 2))
    with torch.no_grad():
        risks = [_risk(net(test.x), test) for net in (one, two)]
        longer = InContextRegression(width=4, examples=128, noise=0.1).batch(4000, 10**7)
        far = _risk(two(longer.x), longer)
    best = min(_risk(debiased_step(test.x, rate / 20), test) for rate in range(1, 41))
    bayes = _risk(task.oracle(test)[:, -1, 0], test)
    read = two.patterns()
    mu, w = torch.tensor(read["value"]), torch.tensor(read["scale"])
    off, off_value = max(read["off"]), max(read["off value"])
    sums = float(mu.sum().abs() / mu.abs().sum())
    opposite = bool((mu.sign() == w.sign()).all()) and float(w.prod()) < 0
    even = float(w.abs().min() / w.abs().max())
    return Measured(
        "with two heads, d = 4, 32 examples and noise 0.1, training puts under 2% of the energy of "
        "key-query blocks off a multiple of the identity and under 1% of value blocks off their "
        "label entry; the multiples are opposite and within a tenth of one another, values sum to "
        "under 5% of their size and have the multiples' signs; its risk is within a fifth of the "
        "best debiased step's, one head's is over 1.5 times as high, and four times as many "
        "examples halve it",
        off < 0.02 and off_value < 0.01 and opposite and even > 0.9 and sums < 0.05
        and risks[1] < 1.2 * best and risks[0] > 1.5 * risks[1] and far < risks[1] / 2,
        {"risk, one head": risks[0], "risk, two heads": risks[1], "best debiased step": best,
         "Bayes": bayes, "two heads, 128 examples": far, "off the pattern": off,
         "values off theirs": off_value, "sum of values over their size": sums,
         "scales": str([round(x, 3) for x in read["scale"]]),
         "values": str([round(x, 3) for x in read["value"]])},
        left_out="covariances other than the identity, several tasks in one prompt, linear "
        "attention",
    )  # fmt: skip


@check("random_feature_attention_theory")
def random_heads() -> Measured:
    """Random heads learn averages over keys from fewer examples than a random net of their size."""
    width, points, heads = 8, 8, 120
    feats = RandomHeads(width, heads)
    biased = RandomHeads(width, heads, biased=True)
    net = RandomNet(width, points, heads * (width + 1))
    x, keys = torch.randn(5, 1, width), torch.randn(5, points, width)
    shuffled = keys[:, torch.randperm(points)]
    moved = gap(feats.features(x, keys), feats.features(x, shuffled))
    moved_net = gap(net.features(x, keys), net.features(x, shuffled))
    weights = (1e-6, 1e-4, 1e-2, 1.0)
    numbers: dict[str, float] = {}
    errors: dict[tuple[str, int], float] = {}
    for power in (0, 2):
        task = KeyAverage(width=width, points=points, power=power)
        train, test = task.batch(800, 1), task.batch(1000, 2)
        for name, made in (("heads", feats), ("biased heads", biased), ("net", net)):
            sides = []
            for batch in (train, test):
                assert batch.context is not None
                sides.append((made.features(batch.x, batch.context), batch.y[:, 0, 0]))
            errors[name, power] = ridge_error(sides[0], sides[1], weights)
            numbers[f"{name}, power {power}: share of variance missed"] = errors[name, power]
    return Measured(
        "features of 120 random heads do not change when keys are shuffled (under 1e-5), those "
        "of a "
        "random net do; from 800 examples their ridge regression misses under half of what a "
        "random "
        "net of as many features misses, on a mean of points; on a correlation of the second power "
        "heads whose matrices match query and key on average miss less than those that do not",
        moved < 1e-5 and moved_net > 0.1 and errors["heads", 0] < 0.5 * errors["net", 0]
        and errors["biased heads", 2] < errors["heads", 2],
        {"heads, moved by a shuffle of keys": moved, "net, moved": moved_net, **numbers},
        left_out="the theorems, and how errors fall with the number of examples; d = N = 8",
    )  # fmt: skip


class _Ranked(nn.Module):
    """Heads of rank r that give a mix of points [b, n, width] for queries [b, m, width]."""

    def __init__(self, width: int, rank: int, heads: int) -> None:
        super().__init__()
        size, scale = (heads, width, rank), width**-0.5
        self.query, self.key = (nn.Parameter(scale * torch.randn(size)) for _ in range(2))
        self.value = nn.Parameter(scale * torch.randn(heads, width, rank))
        self.out = nn.Parameter(scale * torch.randn(heads, rank, width))
        self.sharp = nn.Parameter(torch.full((heads, 1, 1), 2.0))

    def forward(self, batch: Batch) -> Tensor:
        assert batch.context is not None
        points = batch.context[:, None]
        q = batch.x[:, None] @ self.query * self.sharp.exp()
        seen = attend(q, points @ self.key, points @ self.value, Rule(score=Dot(scale=1.0)))
        mixed: Tensor = (seen @ self.out).sum(1)
        return mixed


@check("rank_vs_heads")
def rank() -> Measured:
    """One head of full rank finds the nearest point; as many weights in low ranks do not."""
    task = Nearest(width=16, points=8)
    test = task.batch(2000, 10**7)
    assert test.context is not None
    exact = attend(200 * test.x[:, None], test.context[:, None], test.context[:, None],
                   Rule(score=Dot(scale=1.0)))[:, 0]  # fmt: skip
    built = float((exact - test.y).square().mean())
    errors = {}
    for r, heads in ((16, 1), (4, 4), (2, 8)):
        made = _Ranked(16, r, heads)
        drawn = draws()

        def loss(made: nn.Module = made, drawn: Iterator[int] = drawn) -> Tensor:
            batch = task.batch(64, next(drawn))
            return (made(batch) - batch.y).square().mean()

        fit(made.parameters(), loss, 800, 1e-2)
        with torch.no_grad():
            errors[r, heads] = float((made(test) - test.y).square().mean())
    return Measured(
        "for 8 points on the sphere in 16 dimensions the built head, scores 200 q·k, has a mean "
        "squared error under 1e-2 a coordinate; trained alike, one head of rank 16 has less than "
        "a third of the "
        "error of eight heads of rank 2, which have as many weights",
        built < 1e-2 and errors[16, 1] < errors[2, 8] / 3,
        {"built head": built, **{f"rank {r}, {h} heads": e for (r, h), e in errors.items()}},
        left_out="depth, and the exponential number of heads of the theorem",
    )  # fmt: skip
