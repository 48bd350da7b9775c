"""The check of reading window by window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.segments import Cells, RecurrentWindows
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import fit


@check("ran_recurrent_attention")
def windows() -> Measured:
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
    return Measured(
        "a text of one window is one step and a review of one cell; windows with carried state "
        "are one call; a label set in the first of 16 windows is read from the last cell with "
        "over 95%, and at chance (a quarter) when the cell is reset at each window",
        max(one, streamed) < 1e-5 and accuracy["kept"] > 0.95 and accuracy["reset"] < 0.35,
        {"one window": one, "streamed": streamed,
         **{f"accuracy, cell {name}": a for name, a in accuracy.items()}},
    )  # fmt: skip


def _label(keeps: bool) -> float:
    """Accuracy of naming the first token's kind, 16 windows of 4 tokens later."""
    torch.manual_seed(0)
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
