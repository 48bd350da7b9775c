"""Two heads learn opposite scaled identities, and with them a debiased step of descent."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import seed, seeds
from regard.papers.shared.small_trainer import fit
from regard.tasks.base import Batch
from regard.tasks.regression import InContextRegression, RegressionHeads, debiased_step

STARTS, LOOK, STEPS = 4, 400, 2000


def _trained(task: InContextRegression, heads: int) -> RegressionHeads:
    """The start that does best in training goes on.

    About one start in five gives both heads one sign, and they stay one head: the paper's solution
    is not reached from there.
    """
    drawn = seeds()

    def train(made: RegressionHeads, steps: int) -> None:
        def loss() -> Tensor:
            batch = task.batch(128, next(drawn))
            return (made(batch.x) - batch.y[:, -1, 0]).square().mean()

        fit(made.parameters(), loss, steps, 5e-3)

    starts = [RegressionHeads(task.width, heads, start=0.1) for _ in range(STARTS)]
    for made in starts:
        train(made, LOOK)
    seen = task.batch(4000, next(drawn))
    with torch.no_grad():
        best = min(starts, key=lambda made: _risk(made(seen.x), seen))
    train(best, STEPS)
    return best


def _risk(answer: Tensor, batch: Batch) -> float:
    return float((answer - batch.y[:, -1, 0]).square().mean())


@check(
    "icl_multihead_regression",
    beyond="covariances other than the identity, several tasks in a prompt",
)
def regression() -> Claims:
    """Two heads learn opposite scaled identities, and with them a debiased step of descent."""
    task = InContextRegression(width=4, examples=32, noise=0.1)
    test = task.batch(4000, seed())
    one, two = (_trained(task, heads) for heads in (1, 2))
    with torch.no_grad():
        risks = [_risk(net(test.x), test) for net in (one, two)]
        longer = InContextRegression(width=4, examples=128, noise=0.1).batch(4000, seed())
        far = _risk(two(longer.x), longer)
    best = min(_risk(debiased_step(test.x, rate / 20), test) for rate in range(1, 41))
    read = two.patterns()
    mu, w = torch.tensor(read["value"]), torch.tensor(read["scale"])
    off, off_value = max(read["off"]), max(read["off value"])
    sums = float(mu.sum().abs() / mu.abs().sum())
    opposite = bool((mu.sign() == w.sign()).all()) and float(w.prod()) < 0
    yield claim("d=4,L=32", "energy of key-query blocks off the identity", off).below(
        0.01, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("d=4,L=32", "energy of value blocks off the label", off_value).below(
        0.001, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("d=4,L=32", "|sum mu| / sum |mu|", sums).below(
        0.05, "the catalogue saw 0.005", because="ten times that, for other draws"
    )
    yield claim("d=4,L=32", "w have opposite signs, and those of mu", opposite).equals(
        True, "opposite"
    )
    yield claim("risk 0.160", "risk of two heads", risks[1]).below(
        best,
        "the best debiased step",
        times=1.2,
        because="the catalogue saw 0.160 against 0.149: 7% more, and as much for the spread",
    )
    yield claim("risk 0.160", "risk of one head", risks[0]).above(
        risks[1], "two heads", times=1.5, because="the catalogue saw 1.9 times"
    )
    yield claim("at 4x longer", "risk of two heads, 128 examples", far).below(
        risks[1], "with 32", times=0.5, because="the catalogue saw 0.061 of 0.160"
    )
