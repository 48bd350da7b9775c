"""Common tokens lose, distinct ones win by how often they come, and a fast decoder snaps."""

from __future__ import annotations

from regard.analysis.scan_and_snap import (
    Growth,
    ScanAndSnap,
    descend,
    growth,
    likelihood,
    sampler,
)
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim


@check(
    "scan_and_snap",
    beyond="the rates in closed form",
)
def scanning() -> Claims:
    """Common tokens lose, distinct ones win by how often they come, and a fast decoder snaps."""
    table = likelihood(queries=2, following=8, own=10, shared=6)
    batch = sampler(table, rows=64, length=200)

    def trained(rate_y: float) -> Growth:
        model = ScanAndSnap(*table.shape[::2], table.shape[1])
        entropies = descend(model, batch, 2000, rate_y, rate_z=1.0, report=100)
        return growth(model, table, entropies)

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
