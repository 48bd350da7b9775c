"""Common tokens lose, distinct ones win by how often they come, and a fast decoder snaps."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.analysis.scan_and_snap import Growth, ScanAndSnap, descend, growth
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim


def _likelihood(queries: int, following: int, own: int, shared: int) -> Tensor:
    """P(l | m, n): tokens of each next token's own, and shared ones, with random shares."""
    tokens = shared + following * own
    table = torch.zeros(queries, following, tokens)
    # Next tokens belong to one query each.
    for n in range(following):
        m, start = n % queries, shared + n * own
        table[m, n, start : start + own] = torch.rand(own) + 0.2
        table[m, n, :shared] = torch.rand(shared) + 0.2
    return table / table.sum(-1, keepdim=True).clamp_min(1e-9)


@check(
    "scan_and_snap",
    narrowed={
        "Train the 2-matrix model": (
            "P(l | m, n) in place of sampled sequences; the sampler is written in this check"
        )
    },
    beyond="the rates in closed form",
)
def scanning() -> Claims:
    """Common tokens lose, distinct ones win by how often they come, and a fast decoder snaps."""
    likelihood = _likelihood(queries=2, following=8, own=10, shared=6)
    pairs = likelihood.any(-1).nonzero()

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        return pairs[:, 0], likelihood[pairs[:, 0], pairs[:, 1]], pairs[:, 1]

    def trained(rate_y: float) -> Growth:
        model = ScanAndSnap(*likelihood.shape[::2], likelihood.shape[1])
        # The pairs weigh the same: the mean of their losses is a sum over next tokens.
        entropies = descend(model, batch, 2000, rate_y, rate_z=1.0, report=100)
        return growth(model, likelihood, entropies)

    slow, fast = trained(4.0), trained(40.0)
    yield claim(
        "Train the 2-matrix model", "least share of signs as said", min(slow.as_said, fast.as_said)
    ).above(0.95, "the catalogue's bound", because=CATALOGUE)
    yield claim(
        "Train the 2-matrix model",
        "least rank correlation with co-occurrence",
        min(slow.order, fast.order),
    ).above(0.8, "the catalogue's bound", because=CATALOGUE)
    yield claim(
        "Train the 2-matrix model", "entropy, decoder ten times as fast", fast.entropies[-1]
    ).above(slow.entropies[-1], "the slow decoder, after the same steps")
