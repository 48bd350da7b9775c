"""No target token sees a later one; rows one by one are the grid; reversal is aligned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.pervasive import PervasiveAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit


@check(
    "pervasive_attention",
    narrowed={"Gradient of output i": "a change of the input, and not the gradient"},
)
def grid() -> Claims:
    """No target token sees a later one; rows one by one are the grid; reversal is aligned."""
    restart()
    model = PervasiveAttention(source_vocab=12, target_vocab=13, dim=16, layers=3, growth=16)
    model.eval()
    source, target = torch.randint(0, 12, (2, 7)), torch.randint(0, 13, (2, 6))
    changed = target.clone()
    changed[:, 4:] = (target[:, 4:] + 1) % 13
    leak = gap(model(source, changed)[:, :4], model(source, target)[:, :4])
    rows, parts = None, []
    for i in range(6):
        cells, rows = model.grid(source, target[:, i : i + 1], None, rows, i)
        parts.append(model.words(cells))
    cached = gap(torch.cat(parts, 1), model(source, target))
    padded = F.pad(source, (0, 3), value=5)
    real = torch.arange(10).expand(2, -1) < 7
    padding = gap(model(padded, target, real), model(source, target))

    model.train()

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        source = torch.randint(0, 12, (rows, 8))
        return source, source.flip(1)

    def loss() -> Tensor:
        source, wanted = batch(32)
        scores = model(source, F.pad(wanted[:, :-1], (1, 0), value=12))
        return F.cross_entropy(scores.flatten(0, 1), wanted.flatten())

    fit(model.parameters(), loss, 250, 4e-3)
    model.eval()
    source, wanted = batch(64)
    before = F.pad(wanted[:, :-1], (1, 0), value=12)
    with torch.no_grad():
        right = float((model(source, before).argmax(-1) == wanted).float().mean())
    aligned = model.alignment(source, before, wanted).argmax(-1)
    off = (aligned - (7 - torch.arange(8))).abs()
    exact = float((off == 0).float().mean())
    yield claim("Gradient of output i", "change before a changed target token", leak).within(
        1e-5, "none", because=FLOAT32
    )
    yield claim("cached row-by-row", "difference from the full pass", cached).within(
        1e-5, "the full pass", because=CATALOGUE
    )
    yield claim("cached row-by-row", "change by padding of the source", padding).within(
        1e-5, "none", because=FLOAT32
    )
    yield claim("on a sequence-reversal task", "steps aligned with the anti-diagonal", exact).above(
        0.95, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("on a sequence-reversal task", "target tokens right", right).above(
        0.95, "a task that is learned", because="or alignment would mean nothing"
    )
