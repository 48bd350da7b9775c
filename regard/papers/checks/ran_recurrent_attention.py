"""One window is one step; streaming is one call; the cell carries a label through 16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.segments import Cells, RecurrentWindows
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit


def _label(keeps: bool) -> float:
    """Accuracy of naming the first token's kind, 16 windows of 4 tokens later."""
    restart()
    layer, last = RecurrentWindows(32, heads=4, window=4, least=0), nn.Linear(32, 4)
    kinds = 2 * torch.randn(4, 32)

    def batch(rows: int, windows: int = 16) -> tuple[Tensor, Tensor]:
        wanted = torch.randint(0, 4, (rows,))
        x = torch.randn(rows, 4 * windows, 32)
        x[:, 0] = kinds[wanted]
        return x, wanted

    def scores(x: Tensor) -> Tensor:
        state = layer.first(len(x))
        for piece in layer.windows(x):
            _, _, state = layer.step(piece, state)
            if not keeps:
                state = Cells(layer.first(len(x)).cell, None)
                end = layer.step(piece, state)[2].cell
            else:
                end = state.cell
        answer: Tensor = last(end[:, 0])
        return answer

    lengths = iter([1 + 16 * step // 181 for step in range(180)])  # from 1 window to 16

    def loss() -> Tensor:
        x, wanted = batch(32, next(lengths))
        return F.cross_entropy(scores(x), wanted)

    fit([*layer.parameters(), *last.parameters()], loss, 180, 4e-3)
    x, wanted = batch(1000)
    with torch.no_grad():
        return float((scores(x).argmax(-1) == wanted).float().mean())


@check("ran_recurrent_attention")
def windows() -> Claims:
    """One window is one step; streaming is one call; the cell carries a label through 16."""
    layer, x = RecurrentWindows(32, heads=4, window=8, least=0), torch.randn(2, 40, 32)
    told, cell, _ = layer.step(x[:, :8], layer.first(2))
    one = gap(layer(x[:, :8]), layer.review(told, cell) + layer.gates[2](told))
    whole, cells, _ = layer.read(x)
    first, some, state = layer.read(x[:, :24])
    rest, others, _ = layer.read(x[:, 24:], state)
    streamed = max(
        gap(torch.cat((first, rest), 1), whole), gap(torch.cat((some, others), 1), cells)
    )
    accuracy = {name: _label(keeps) for name, keeps in (("kept", True), ("reset", False))}
    yield claim("One window", "difference from one step and a review of one cell", one).within(
        1e-5, "the layer written out", because=FLOAT32
    )
    yield claim("streaming windows", "difference from one call", streamed).within(
        1e-6, "one call", because=CATALOGUE
    )
    yield claim("Toy: label set", "accuracy through 16 windows", accuracy["kept"]).above(
        0.95, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("at chance with the cell reset", "accuracy, cell reset", accuracy["reset"]).below(
        0.25, "a quarter by chance", plus=0.06, because="four standard errors of 1,000 questions"
    )
