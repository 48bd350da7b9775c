"""Open gates are relative positions; gates on a marker count it; flip-flops generalize."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.rule import Rule
from regard.core.score import Cope, Dot
from regard.core.support import Causal
from regard.layers.building import model
from regard.layers.relative import ContextualPositions
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit
from regard.run.api import attend


def _flip_flops(rows: int, n: int, quiet: float) -> tuple[Tensor, Tensor]:
    """Draw instructions 0 write, 1 ignore, 2 read, each followed by a bit, 3 or 4.

    After a read comes what was last written. Gives tokens [rows, 2 n], and the reads [rows, n].
    """
    kinds = torch.multinomial(
        torch.tensor([(1 - quiet) / 2, quiet, (1 - quiet) / 2]), rows * n, True
    )
    kinds = kinds.view(rows, n)
    kinds[:, 0] = 0
    bits = torch.randint(0, 2, (rows, n))
    place = torch.where(kinds == 0, torch.arange(n), 0).cummax(1).values
    bits = torch.where(kinds == 2, bits.gather(1, place), bits)
    return torch.stack((kinds, bits + 3), -1).flatten(1), kinds == 2


def _flip_flop(name: str, **settings: object) -> list[float]:
    """Errors of reading, on texts with few writes, of a model trained on texts with many."""
    restart()
    tiny = model([name] * 2, dim=32, heads=2, vocab=5, **settings)

    def loss() -> Tensor:
        tokens, reads = _flip_flops(32, 24, 0.3)
        scores = tiny(tokens)[:, ::2]
        return F.cross_entropy(scores[reads], tokens[:, 1::2][reads])

    fit(tiny.parameters(), loss, 400, 5e-3)
    errors = []
    for quiet in (0.8, 0.95):
        tokens, reads = _flip_flops(512, 24, quiet)
        with torch.no_grad():
            guessed = tiny(tokens)[:, ::2].argmax(-1)
        errors.append(float((guessed != tokens[:, 1::2])[reads].float().mean()))
    return errors


@check(
    "cope",
    narrowed={
        "Gates forced to 1": (
            "1e-4 where the catalogue says 1e-6: the channel that opens all gates costs digits"
        )
    },
)
def contextual() -> Claims:
    """Open gates are relative positions; gates on a marker count it; flip-flops generalize."""
    n, d = 20, 8
    q, k, v = (torch.randn(1, 4, n, d) for _ in range(3))
    table = torch.randn(1, n + 3, d) / d**0.5
    apart = torch.arange(n)[:, None] - torch.arange(n)

    def with_channel(x: Tensor, extra: Tensor) -> Tensor:
        return torch.cat((x, extra.expand(*x.shape[:-1], 1)), -1)

    def contextually(of_query: Tensor, of_key: Tensor, table: Tensor) -> Tensor:
        score = Dot(d**-0.5) + Cope(with_channel(table, torch.zeros(1)))
        return attend(with_channel(q, of_query), with_channel(k, of_key), v, Rule(Causal(), score))

    def explicitly(scores: Tensor) -> Tensor:
        return scores.masked_fill(apart < 0, -torch.inf).softmax(-1) @ v

    # One more channel adds the same large number to every score of a row: all gates are open.
    opened = contextually(torch.tensor([10.0]), torch.tensor([10.0]), table)
    met = (q @ table.mT).gather(-1, (apart + 1).clamp(0).expand(1, 4, n, n))
    relative = gap(opened, explicitly((q @ k.mT) / d**0.5 + met))

    # The channel opens gates at markers alone; e[p] = p a makes the bias count them.
    marks = torch.randint(0, 2, (n,))
    channel = torch.where(marks == 1, 30.0, -30.0)[:, None]
    direction = torch.randn(d) / d
    counting = contextually(
        torch.tensor([d**0.5]), channel, torch.arange(n + 3.0)[None, :, None] * direction
    )
    total = marks.cumsum(0)
    count = (total[:, None] - total + marks).clamp(0)
    bias = (q @ direction)[..., None] * count
    counted = gap(counting, explicitly((q @ k.mT) / d**0.5 + channel[:, 0] + bias))

    layer, x = ContextualPositions(32, heads=4, furthest=8), torch.randn(1, n, 32)
    changed = torch.cat((x[:, :12], torch.randn(1, n - 12, 32)), 1)
    leak = gap(layer(changed)[:, :12], layer(x)[:, :12])
    wrong = {"cope": _flip_flop("cope"), "rotary": _flip_flop("mha", position="rotary")}
    yield claim("Gates forced to 1", "difference from learned relative positions", relative).within(
        1e-4,
        "ordinary relative positions",
        because="a channel of 100 added to every score costs float32 two digits",
    )
    yield claim(
        "gates open on one marker", "difference from a bias that counts markers", counted
    ).within(
        1e-3, "the count, written out", because="a channel of 30 d, as above, and counts up to 20"
    )
    yield claim("no future leak", "change before a changed token", leak).within(
        1e-6, "none", because=FLOAT32
    )
    yield claim("trained on Flip-Flop", "error, writes 1 in 10", wrong["cope"][0]).below(
        0.05, "the catalogue's bound", because=CATALOGUE
    )
    for place, ours, theirs in zip(
        ("1 in 10", "1 in 40"), wrong["cope"], wrong["rotary"], strict=True
    ):
        yield claim("trained on Flip-Flop", f"error, writes {place} ", ours).below(
            theirs, "rotary positions, trained alike", times=0.5, because="far below: at most half"
        )
