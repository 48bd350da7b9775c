"""Masked references and copies change nothing, their order neither; more weight, more likeness."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn.functional import cosine_similarity

from regard.controls.diffusion import ReferenceAttention
from regard.controls.token_sets import TokenMask
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import TOKENS, alike, pictures, with_edits


@check(
    "lcm_lookahead",
    narrowed={"with a toy U-Net": "one layer of random features in place of a toy U-Net"},
    beyond="the encoder, and the loss through a preview in one step: both are trained",
)
@torch.no_grad()
def lcm_lookahead() -> Claims:
    """Masked references and copies change nothing; more weight, more likeness."""
    call, same = pictures(2), alike(pictures(2))
    nothing = TokenMask(torch.arange(TOKENS + 1) == TOKENS)
    masked = with_edits(call, ReferenceAttention(mask=nothing).edits())[0]
    copied = with_edits(same, ReferenceAttention().edits())[0]
    three = pictures(3)
    order = torch.tensor([1, 0, 2])
    turned = three.replace(**{n: getattr(three, n)[order] for n in ("q", "k", "v")})
    a, b = (with_edits(x, ReferenceAttention((0, 1)).edits())[0][2] for x in (three, turned))
    values = call.v[0].mean(1).flatten()
    likeness = []
    for weight in (0.0, 0.5, 1.0, 2.0, 8.0):
        out = with_edits(call, ReferenceAttention(strength=weight).edits())[0][1]
        likeness.append(float(cosine_similarity(out.mean(1).flatten(), values, 0)))
    yield claim("Reference keys masked", "difference", gap(masked, with_edits(call, ())[0])).equals(
        0.0, "base output"
    )
    yield claim("identical to K_gen", "difference", gap(copied, with_edits(same, ())[0])).within(
        1e-12, "the output", because=FLOAT64
    )
    yield claim("swapping reference order", "difference", gap(a, b)).within(
        1e-12, "the output in the other order", because=FLOAT64
    )
    yield claim("with a toy U-Net", "weights at which likeness did not rise",
                sum(y <= x for x, y in pairwise(likeness))).equals(0, "none of 5")  # fmt: skip
