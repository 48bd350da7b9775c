"""An identical reference changes nothing; outputs are means of the reference's masked values."""

from __future__ import annotations

import torch

from regard.controls.diffusion import VisCtrl
from regard.controls.image_tokens import Region
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import LEFT, TOKENS, alike, pictures, with_edits


@check("visctrl", beyond="rounds of inversion on pictures, and views of a scene")
@torch.no_grad()
def visctrl() -> Claims:
    """An identical reference changes nothing; outputs are means of the reference's values."""
    call = pictures(2)
    edits = VisCtrl(mask=Region(box=(0, 0, 1, 0.5))).edits()
    out, weights = with_edits(call, edits)
    kept = weights[1, ..., TOKENS:][..., LEFT]
    # A point of the hull: weights that are not negative, sum to one, and give the output.
    made = kept @ call.v[0][:, LEFT]
    away = max(gap(made, out[1]), gap(kept.sum(-1), torch.ones((), dtype=kept.dtype)))
    rest = torch.cat((weights[1, ..., :TOKENS], weights[1, ..., TOKENS:][..., ~LEFT]), -1)
    for kind in ("self", "joint"):
        same = alike(pictures(2, kind))
        shared = with_edits(same, VisCtrl().edits())[0]
        yield claim(
            "With reference identical to target", f"difference, {kind}",
            gap(shared, with_edits(same, ())[0]),
        ).within(1e-12, "plain attention", because=FLOAT64)  # fmt: skip
    yield claim("convex hull of masked reference values", "distance", away).within(
        1e-12, "a mean of these values", because=FLOAT64
    )
    yield claim("unmasked-background keys get zero weight", "largest", float(rest.max())).equals(
        0.0, "none"
    )
