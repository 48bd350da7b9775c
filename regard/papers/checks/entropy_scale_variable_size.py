"""Entropy at other sizes is nearer to that of training, which itself is left bit for bit."""

from __future__ import annotations

import math

import torch

from regard.controls.diffusion import EntropyScale
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import TOKENS, pictures, with_edits

TRAINED = 64


def _share(n: int, factor: float) -> float:
    """Return the mean entropy over n tokens as a share of log n: q and k are normal."""
    q, k = torch.randn(2, max(4, 4096 // n), n, 32)
    weights = (factor * q @ k.transpose(1, 2) * 32**-0.5).softmax(-1)
    return float(-torch.special.xlogy(weights, weights).sum(-1).mean()) / math.log(n)


@check(
    "entropy_scale_variable_size",
    beyond="sharper attention, where the drift is not halved; FID of trained models",
)
@torch.no_grad()
def entropy_scale() -> Claims:
    """Entropy at other sizes is nearer to that of training, which is left bit for bit."""
    base = _share(TRAINED, 1.0)
    for n in (TRAINED // 4, 4 * TRAINED, 16 * TRAINED):
        factor = EntropyScale(TRAINED).factor(n, n)
        fixed, scaled = (abs(_share(n, f) - base) for f in (1.0, factor))
        yield claim("normalised drift", f"drift of entropy at {n} tokens", scaled).at_most(
            fixed, "that of the fixed scale", times=0.5, because="the sentence's half"
        )
    call = pictures(2)
    same = with_edits(call, EntropyScale(TOKENS).edits())[0]
    yield claim("N=T gives", "difference", gap(same, with_edits(call, ())[0])).equals(
        0.0, "the usual scale, bit for bit"
    )
