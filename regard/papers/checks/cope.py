"""Open gates are relative positions; gates on a marker count it; flip-flops generalize."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.building import model
from regard.layers.relative import ContextualPositions
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, FLOAT64, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.until_learned import fit_until

LONG = 18  # instructions of a text


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
        tokens, reads = _flip_flops(32, LONG, 0.3)
        scores = tiny(tokens)[:, ::2]
        return F.cross_entropy(scores[reads], tokens[:, 1::2][reads])

    fit_until(tiny.parameters(), loss, 0.005, 400, 5e-3)
    errors = []
    for quiet in (0.8, 0.95):
        tokens, reads = _flip_flops(512, LONG, quiet)
        with torch.no_grad():
            guessed = tiny(tokens)[:, ::2].argmax(-1)
        errors.append(float((guessed != tokens[:, 1::2])[reads].float().mean()))
    return errors


def _written_out(layer: ContextualPositions, x: Tensor) -> Tensor:
    """Follow the paper's equations, pair by pair: [1, n, dim]."""
    n, d = x.shape[1], layer.head_dim
    q, k, v = (
        one(x).view(1, n, layer.heads, d).transpose(1, 2)
        for one in (layer.to_q, layer.to_k, layer.to_v)
    )
    table = layer.position.table  # type: ignore[union-attr]  # the position is CoPE here
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / d**0.5
    out = torch.zeros_like(q)
    for h in range(layer.heads):
        for i in range(n):
            row = scores[0, h, i, : i + 1].clone()
            for j in range(i + 1):
                p = sum(1 / (1 + torch.exp(-scores[0, h, i, t])) for t in range(j, i + 1))
                p = min(float(p), len(table) - 1.0)
                low = int(p)
                share = p - low
                between = (1 - share) * table[low] + share * table[min(low + 1, len(table) - 1)]
                row[j] = row[j] + q[0, h, i] @ between / d**0.5
            out[0, h, i] = row.softmax(-1) @ v[0, h, : i + 1]
    mixed: Tensor = layer.to_out(out.transpose(1, 2).flatten(2))
    return mixed


def _with_gates(channel: Tensor, n: int) -> tuple[ContextualPositions, Tensor]:
    """Make a layer whose gates a channel [n] of its input decides, and the input [1, n, 32].

    Two channels are set apart: queries read a 1 from the first, keys read `channel` in the second,
    and only the other channels of q meet the learned positions.
    """
    layer = ContextualPositions(32, heads=4, furthest=n + 2).double()
    x = torch.randn(1, n, 32).double()
    x[..., 0], x[..., 1] = 1.0, channel
    with torch.no_grad():
        for map_ in (layer.to_q, layer.to_k, layer.to_v):
            map_.weight[:, :2] = 0.0
        for head in range(0, 32, layer.head_dim):
            for map_, read in ((layer.to_q, 0), (layer.to_k, 1)):
                map_.weight[head] = 0.0
                map_.weight[head, read] = 1.0
        # The position is CoPE here.
        layer.position.table[:, 0] = 0.0  # type: ignore[union-attr,index,operator]
    return layer, x


def _relatively(layer: ContextualPositions, x: Tensor, places: Tensor) -> Tensor:
    """Attend with ordinary learned positions, e[places] for each pair [n, n], in the layer's stead.

    Softmax attention written out with the layer's weights.
    """
    n, d = x.shape[1], layer.head_dim
    q, k, v = (
        one(x).view(1, n, layer.heads, d).transpose(1, 2)
        for one in (layer.to_q, layer.to_k, layer.to_v)
    )
    vectors = layer.position.table[places.clamp_min(0)]  # type: ignore[union-attr,index]
    scores = (q @ k.mT + torch.einsum("bhid,ijd->bhij", q, vectors)) / d**0.5
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    seen = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    mixed: Tensor = layer.to_out(seen.transpose(1, 2).flatten(2))
    return mixed


@check("cope")
def contextual() -> Claims:
    """Open gates are relative positions; gates on a marker count it; flip-flops generalize."""
    n = 20
    # A channel that adds the same large number to every score of a row opens all gates.
    layer, x = _with_gates(torch.tensor(150.0), n)
    apart = torch.arange(n)[:, None] - torch.arange(n)
    relative = gap(layer(x), _relatively(layer, x, apart + 1))

    # The channel opens gates at markers alone: positions are counts of markers.
    marks = torch.randint(0, 2, (n,))
    layer, x = _with_gates(torch.where(marks == 1, 150.0, -150.0), n)
    total = marks.cumsum(0)
    counted = gap(layer(x), _relatively(layer, x, total[:, None] - total + marks))

    layer, x = (
        ContextualPositions(16, heads=2, furthest=5).double(),
        torch.randn(1, 12, 16).double(),
    )
    with torch.no_grad():
        layer.to_q.weight *= 3  # gates that differ
        equations = gap(layer(x), _written_out(layer, x))

    layer, x = ContextualPositions(32, heads=4, furthest=8), torch.randn(1, n, 32)
    changed = torch.cat((x[:, :12], torch.randn(1, n - 12, 32)), 1)
    leak = gap(layer(changed)[:, :12], layer(x)[:, :12])
    wrong = {"cope": _flip_flop("cope"), "rotary": _flip_flop("mha", position="rotary")}
    yield claim("Gates forced to 1", "difference from learned relative positions", relative).within(
        1e-6, "ordinary relative positions", because=CATALOGUE
    )
    yield claim(
        "gates open on one marker", "difference from positions that count markers", counted
    ).within(1e-9, "e[count], written out", because=FLOAT64)
    yield claim(
        "gates open on one marker", "difference of the layer, gates that are partly open", equations
    ).within(1e-9, "the paper's equations, pair by pair", because=FLOAT64)
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
            theirs,
            "rotary positions, trained until they read as well",
            times=0.5,
            because="far below: at most half",
        )
