"""Pairs sum to the score; slow pairs tell distance; the model that ships reads far by them."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart, seed
from regard.papers.shared.copier_models import looked
from regard.papers.shared.measure import gap
from regard.probes.position_heads import RotaryPairs, contributions


@check(
    "rope_positional_heads",
    beyond="the paper's own formula, which we could not find, and its ablations",
)
def rotary() -> Claims:
    """Pairs sum to the score; slow pairs tell distance; the model that ships reads far by them."""
    n, d = 256, 32
    restart()
    x = torch.zeros(1, 3, n, d)
    x[:, 0, :, d // 2 - 3 : d // 2] = 1.0
    x[:, 1, :, :3] = 1.0
    x[:, 2] = torch.randn(n, d)
    angle = torch.arange(n)[:, None] * 10000.0 ** (-2 * torch.arange(d // 2) / d)
    a, b = x.chunk(2, -1)
    q = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
    k = q.clone()
    q[:, 2], k[:, 2] = x[:, 2], torch.randn(n, d)  # not turned
    call = Call.of(q.double(), k.double(), k.double(), Rule(Causal()))
    scores = looked(RotaryPairs(seed=seed()), call)
    i, j = torch.tensor([200, 9, 31]), torch.tensor([3, 9, 30])
    whole = (call.q @ call.k.transpose(-1, -2)) * d**-0.5
    off = max(gap(x.sum(1), whole[0, h, i, j]) for h, x in enumerate(contributions(call, i, j)))
    yield claim("Sum of pair contributions", "largest difference", off).within(
        1e-5, "the pre-softmax logit", because=CATALOGUE
    )
    yield claim("A synthetic head", "head that ranks first", int(scores.argmax())).equals(
        0, "that of the slowest pairs"
    )
    # Of heads that turn: one without positions has no pair of channels to rank, and is next to 0.
    yield claim("a head with energy", "head that ranks last", int(scores[:2].argmin())).equals(
        1, "that of the fastest pairs, of the two with positions"
    )
    yield claim("NoPE heads", "correlation", float(scores[2])).within(
        0.05, "0", because="32,640 pairs of positions: far over their spread"
    )
