"""Empty masks and one's own picture change nothing; added weights are monotone, factors are not."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from regard.controls.diffusion import FreeCustom, PicturesBeside, ReadPictures
from regard.controls.image_tokens import Region
from regard.controls.token_sets import TokenMask
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import LEFT, TOKENS, alike, pictures, with_edits

MASK = Region(box=(0, 0, 1, 0.5))


def _multiplied(scores: Tensor, factor: float) -> float:
    """Return the mass on a reference whose scores are the own ones, multiplied by a factor."""
    both = torch.cat((scores, factor * scores), -1).softmax(-1)
    return float(both[..., scores.shape[-1] :].sum(-1).mean())


@check("freecustom", beyond="pictures of Stable Diffusion, and the paper's users")
@torch.no_grad()
def freecustom() -> Claims:
    """Empty masks and one's own picture change nothing; added weights are monotone."""
    call = pictures(2)
    plain = with_edits(call, ())[0]
    # A mask of the reference that is zero everywhere: tokens behind the picture alone.
    nothing = TokenMask(torch.arange(TOKENS + 1) == TOKENS)
    empty = with_edits(call, (ReadPictures(PicturesBeside((0,), region=nothing)),))[0]
    same = alike(pictures(2))
    own = with_edits(same, FreeCustom((0,), weight=0.0).edits())[0]
    mass = []
    for weight in (0.0, 1.0, 3.0, 5.0):
        weights = with_edits(call, FreeCustom((0,), (MASK,), weight=weight).edits())[1]
        mass.append(float(weights[1, ..., TOKENS:].sum(-1).mean()))
    # The last weight, by the equation: it is added to scores of the subject, and the rest is gone.
    pair = [call.q[1] @ call.k[i].mT * call.d**-0.5 for i in (1, 0)]
    pair[1] = (pair[1] + 5.0).masked_fill(~LEFT, -torch.inf)
    written = gap(weights[1], torch.cat(pair, -1).softmax(-1))
    outside = float(weights[1, ..., TOKENS:][..., ~LEFT].abs().max())
    scores = -(call.q.abs() @ call.k.abs().transpose(2, 3)) * call.d**-0.5
    yield claim("Masks all zero return", "difference", gap(empty, plain)).equals(
        0.0, "plain self-attention"
    )
    yield claim("reference = own image", "difference", gap(own, with_edits(same, ())[0])).within(
        1e-12, "plain self-attention", because=FLOAT64
    )
    yield claim("monotone in w", "weights at which it did not rise",
                sum(b <= a for a, b in pairwise(mass))).equals(0, "none of 0, 1, 3, 5")  # fmt: skip
    yield claim("monotone in w", "difference of weights at w = 5", written).within(
        1e-12, "softmax with w added to scores in the mask", because=FLOAT64
    )
    yield claim("monotone in w", "weight outside of the mask", outside).equals(0.0, "none")
    yield claim(
        "when logits are negative", "mass at a factor of 3", _multiplied(scores, 3.0)
    ).below(_multiplied(scores, 1.0), "at a factor of 1: it falls")
