"""Scores and masks of a user's making equal dense attention, gradients of biases too."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, RelativeBias, SoftCap
from regard.core.support import Causal, Documents, PrefixLM, Window, documents_from_lengths
from regard.core.tilemap import EMPTY
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.run.api import attend


def _tiles(mask: torch.Tensor, size: int) -> torch.Tensor:
    """Which tiles of a mask [n, n] hold an allowed pair."""
    n = len(mask)
    padded = F.pad(mask, (0, -n % size, 0, -n % size))
    return padded.unfold(0, size, size).unfold(1, size, size).any(-1).any(-1)


@check("flex_attention")
def flex() -> Claims:
    """Scores and masks of a user's making equal dense attention, gradients of biases too."""
    n, h = 96, 2
    table = torch.nn.Parameter(0.3 * torch.randn(h, 2 * n - 1))
    lengths = documents_from_lengths([30, 41, 25])
    rules = {
        "ALiBi": Rule(Causal(), Dot() + Alibi.for_heads(h)),
        "window": Rule(Causal() & Window(17)),
        "prefix": Rule(PrefixLM(20)),
        "documents": Rule(lengths),
        "soft cap": Rule(Causal(), Dot() >> SoftCap(2.0)),
        "composed": Rule(
            Causal() & Window(40) & lengths, Dot() + RelativeBias(table) >> SoftCap(3.0)
        ),
    }
    q, k, v = (torch.randn(1, h, n, 16, requires_grad=True) for _ in range(3))
    held = [q, k, v, table]
    apart = torch.arange(n) - torch.arange(n)[:, None]
    gaps, gradients = {}, 0.0
    for name, rule in rules.items():
        scores = q @ k.mT / 4
        if name == "ALiBi":
            scores = scores + Alibi.for_heads(h).slopes[:, None, None] * apart
        if name == "composed":
            scores = scores + table[:, apart + n - 1]
        caps = {"soft cap": 2.0, "composed": 3.0}
        if name in caps:
            scores = caps[name] * torch.tanh(scores / caps[name])
        mask = rule.support.matrix(n)
        dense = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        goal = torch.randn_like(dense)
        wanted = torch.autograd.grad((dense * goal).sum(), held, allow_unused=True)
        tiled = attend(q, k, v, rule, executor="chunked")
        found = torch.autograd.grad((tiled * goal).sum(), held, allow_unused=True)
        gaps[name] = gap(tiled, dense)
        gradients = max(
            [gradients, *(gap(a, b) for a, b in zip(found, wanted, strict=True) if b is not None)]
        )
    rule = rules["composed"].replace(score=Dot() + RelativeBias(table.detach()) >> SoftCap(3.0))
    with torch.no_grad():
        compiled = gap(
            attend(q, k, v, rule, executor="flex"), attend(q, k, v, rule, executor="reference")
        )
    size = 16
    tiles = _tiles(rule.support.matrix(n)[0, 0], size)
    visited = int((rule.support.tiles(n, n, size).state != EMPTY).sum())
    crossing = Documents(torch.arange(n) // 10).tiles(n, n, size)
    for name, apart_ in gaps.items():
        yield claim("For ALiBi", f"difference of the output, {name}", apart_).within(
            1e-5, "dense masked attention", because=CATALOGUE
        )
    yield claim(
        "For ALiBi", "largest difference of gradients, a captured bias included", gradients
    ).within(1e-5, "dense masked attention", because=CATALOGUE)
    yield claim("For ALiBi", "difference of the compiled kernel", compiled).within(
        1e-5, "torch's flex_attention against the reference", because=FLOAT32, independent=True
    )
    yield claim("visited tile count", "tiles visited", visited).equals(
        int(tiles.sum()), "non-empty tiles of the mask"
    )
    yield claim(
        "document lists crossing",
        "tiles visited, documents of 10 and tiles of 16",
        int((crossing.state != EMPTY).sum()),
    ).equals(
        int(_tiles(Documents(torch.arange(n) // 10).matrix(n)[0, 0], size).sum()),
        "non-empty tiles of the mask",
    )
