"""A rate of 0 and identical pictures change nothing; the more is shared, the more alike."""

from __future__ import annotations

from itertools import pairwise

import torch

from regard.controls.diffusion import StoryDiffusion
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import alike, pictures, with_edits


@check("storydiffusion", beyond="pictures of Stable Diffusion; the trained motion predictor")
@torch.no_grad()
def storydiffusion() -> Claims:
    """A rate of 0 and identical pictures change nothing; the more is shared, the more alike."""
    call = pictures(4)
    plain = with_edits(call, ())[0]
    none = with_edits(call, StoryDiffusion(rate=0.0).edits())[0]
    apart = []
    for rate in (0.0, 0.25, 0.5, 1.0):
        out = with_edits(call, StoryDiffusion(rate=rate).edits())[0]
        apart.append(float(torch.pdist(out.mean(2).flatten(1)).mean()))
    # At a rate of 1 every picture reads all tokens of all pictures, by the equation.
    every = [x.transpose(0, 1).flatten(1, 2) for x in (call.k, call.v)]  # [h, b m, d]
    scores = torch.einsum("bhnd,hmd->bhnm", call.q, every[0]) * call.d**-0.5
    all_read = gap(out, torch.einsum("bhnm,hme->bhne", scores.softmax(-1), every[1]))
    rises = sum(b >= a for a, b in pairwise(apart))
    yield claim("Rate 0 equals plain self-attention", "difference", gap(none, plain)).equals(
        0.0, "plain self-attention"
    )
    for kind in ("self", "joint"):
        same = alike(pictures(3, kind))
        shared = with_edits(same, StoryDiffusion(rate=1.0).edits())[0]
        yield claim(
            "with identical images in the batch, rate 1 also does", f"difference, {kind}",
            gap(shared, with_edits(same, ())[0]),
        ).within(1e-12, "plain attention", because=FLOAT64)  # fmt: skip
    yield claim("falls as the rate grows", "rates at which it did not fall", rises).equals(
        0, "none of 0, 0.25, 0.5, 1"
    )
    yield claim("falls as the rate grows", "difference at a rate of 1", all_read).within(
        1e-12, "one softmax over the keys of all pictures", because=FLOAT64
    )
