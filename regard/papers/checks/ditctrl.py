"""The same again stays so, masks of ones are no masks, joints are smooth; sharing makes alike."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from regard.controls.diffusion import DiTCtrl, blend_segments
from regard.controls.image_tokens import Region
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import TOKENS, alike, pictures, with_edits

WHOLE = Region(box=(0, 0, 1, 1))


@check(
    "ditctrl",
    narrowed={"in a toy MM-DiT": "one joint layer of random features in place of a toy MM-DiT"},
    beyond="transitions of videos of CogVideoX, and masks that are found in maps",
)
@torch.no_grad()
def ditctrl() -> Claims:
    """The same again stays so, masks of ones are no masks, joints are smooth."""
    same = with_edits(alike(pictures(2, "joint")), DiTCtrl().edits())[0]
    call = pictures(2, "joint")
    shared = with_edits(call, DiTCtrl().edits())[0]
    masked = with_edits(call, DiTCtrl(mask=WHOLE, target=WHOLE).edits())[0]
    plain = with_edits(call, ())[0]
    pairs = [x[:, :, :TOKENS].mean(2).flatten(1) for x in (plain, shared)]
    likeness = [float(cosine_similarity(x[0], x[1], 0)) for x in pairs]
    constant = torch.full((4, 13, 2, 3), float(torch.randn(())))
    joined = blend_segments([constant] * 3, 6)
    steps = blend_segments([torch.zeros(1, 13, 1, 1), torch.ones(1, 13, 1, 1)], 6).flatten()
    yield claim("Identical prompts and noise", "difference", gap(same[0], same[1])).within(
        1e-12, "identical outputs", because=FLOAT64
    )
    yield claim("masks all-ones equal", "difference", gap(shared, masked)).within(
        1e-12, "unmasked sharing", because=FLOAT64
    )
    yield claim("triangular-weight average", "largest difference of a constant",
                gap(joined, constant[:1, :1].expand_as(joined))).within(
        1e-6, "the constant", because=FLOAT32
    )  # fmt: skip
    largest = float(steps.diff().max())
    yield claim("triangular-weight average", "largest step over 6 frames", largest).below(
        0.5, "half of the jump", because="a ramp over six frames steps by a fifth"
    )
    yield claim("in a toy MM-DiT", "similarity with sharing", likeness[1]).above(
        likeness[0], "that without"
    )
