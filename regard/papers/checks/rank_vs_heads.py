"""One head of full rank finds the nearest point; as many weights in low ranks do not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from regard.core.rule import Rule
from regard.core.score import Dot
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import seed, seeds
from regard.papers.shared.small_trainer import fit
from regard.run.api import attend
from regard.tasks.base import Batch
from regard.tasks.nearest import Nearest


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


@check("rank_vs_heads", beyond="depth, and the exponential number of heads of the theorem")
def rank() -> Claims:
    """One head of full rank finds the nearest point; as many weights in low ranks do not."""
    task = Nearest(width=16, points=8)
    test = task.batch(2000, seed())
    assert test.context is not None
    exact = attend(200 * test.x[:, None], test.context[:, None], test.context[:, None],
                   Rule(score=Dot(scale=1.0)))[:, 0]  # fmt: skip
    built = float((exact - test.y).square().mean())
    errors = {}
    for r, heads in ((16, 1), (4, 4), (2, 8)):
        made = _Ranked(16, r, heads)
        drawn = seeds()

        def loss(made: nn.Module = made, drawn: Iterator[int] = drawn) -> Tensor:
            batch = task.batch(64, next(drawn))
            return (made(batch) - batch.y).square().mean()

        fit(made.parameters(), loss, 800, 1e-2)
        with torch.no_grad():
            errors[r, heads] = float((made(test) - test.y).square().mean())
    yield claim("At d=16, N=8", "mean squared error of the built head", built).below(
        1e-2, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("a trained model with r=16", "error of eight heads of rank 2", errors[2, 8]).above(
        errors[16, 1],
        "one head of rank 16 with as many weights, trained alike",
        times=3,
        because=CATALOGUE,
    )
