"""No weight, no mask and one's own picture change nothing; mass grows with the weight."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from regard.controls.diffusion import ReferenceAttention
from regard.controls.token_sets import TokenMask
from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import TOKENS, alike, pictures, with_edits

WEIGHTS = (0.25, 0.5, 1.0, 4.0)


def _share(call: Call, w: float) -> Tensor:
    """What the second picture gives the first by the equation, [h, n]: its odds times w."""
    own, reference = (
        torch.einsum("hnd,hmd->hnm", call.q[1], call.k[i]).div(call.d**0.5).exp().sum(-1)
        for i in (1, 0)
    )
    return w * reference / (own + w * reference)


@check("dreamtuner", beyond="the trained subject encoder, and pictures")
@torch.no_grad()
def dreamtuner() -> Claims:
    """No weight, no mask and one's own picture change nothing; mass grows with the weight."""
    call, same = pictures(2), alike(pictures(2))
    plain = with_edits(call, ())[0]
    none = with_edits(call, ReferenceAttention(strength=0.0).edits())[0]
    nothing = TokenMask(torch.arange(TOKENS + 1) == TOKENS)
    masked = with_edits(call, ReferenceAttention(mask=nothing).edits())[0]
    own = with_edits(same, ReferenceAttention().edits())[0]
    shares = [
        with_edits(call, ReferenceAttention(strength=w).edits())[1][1, ..., TOKENS:].sum(-1)
        for w in WEIGHTS
    ]
    mass = [float(x.sum()) for x in shares]
    written = max(gap(x, _share(call, w)) for x, w in zip(shares, WEIGHTS, strict=True))
    yield claim("w=0 or m_r all zero", "difference at w=0", gap(none, plain)).equals(
        0.0, "plain self-attention"
    )
    yield claim("w=0 or m_r all zero", "difference without a mask", gap(masked, plain)).equals(
        0.0, "plain self-attention"
    )
    yield claim("w=1 with reference", "difference", gap(own, with_edits(same, ())[0])).within(
        1e-12, "plain self-attention", because=FLOAT64
    )
    yield claim("monotone in w", "weights at which it did not rise",
                sum(b <= a for a, b in pairwise(mass))).equals(0, "none of 4")  # fmt: skip
    yield claim("monotone in w", "difference of the share of every query", written).within(
        1e-12, "w a / (b + w a) of its sums of exp", because=FLOAT64
    )
