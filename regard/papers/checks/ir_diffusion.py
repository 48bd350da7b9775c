"""One subject reads as any reference is read; of two, neither gets any weight from the other."""

from __future__ import annotations

import torch

from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.diffusion.subject_isolation import IsolatedSubjects
from regard.controls.image_tokens import Region
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import LEFT, TOKENS, pictures, with_edits

HALVES = (Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1)))


@check(
    "ir_diffusion",
    beyond="repositioning, which moves the reference's latent; pictures, and masks found in maps",
)
@torch.no_grad()
def ir_diffusion() -> Claims:
    """One subject reads as any reference is read; of two, neither gets weight from the other."""
    call = pictures(2)
    one = with_edits(call, IsolatedSubjects(HALVES[:1], HALVES[:1]).edits())[0]
    plain = with_edits(call, (ReadPictures(PicturesBeside((0,), region=HALVES[0])),))[0]
    swapped = (HALVES[1], HALVES[0])  # the left subject is on the right of the reference
    weights = with_edits(call, IsolatedSubjects(HALVES, swapped).edits())[1]
    apart, own = [], []
    for inside, other in ((LEFT, ~LEFT), (~LEFT, LEFT)):
        rows = weights[1, :, inside]
        apart += [rows[..., :TOKENS][..., other].sum(-1), rows[..., TOKENS:][..., inside].sum(-1)]
        own.append(rows[..., TOKENS:][..., other].sum(-1))
    sums = gap(weights.sum(-1), torch.ones((), dtype=weights.dtype))
    yield claim("one subject and equal boxes", "outputs equal", torch.equal(one, plain)).equals(
        True, "those of plain reference attention"
    )
    yield claim("two disjoint masks", "largest mass on another subject",
                max(float(x.max()) for x in apart)).equals(0.0, "0")  # fmt: skip
    yield claim("two disjoint masks", "least mass on its own in the reference",
                min(float(x.min()) for x in own)).above(0, "0")  # fmt: skip
    yield claim("two disjoint masks", "largest deviation of a sum", sums).within(
        1e-12, "1", because=FLOAT64
    )
