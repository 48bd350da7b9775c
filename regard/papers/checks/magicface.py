"""Without references nothing changes; regions read their own reference, in place of themselves."""

from __future__ import annotations

import torch

from regard.controls.diffusion import MagicFace, PicturesBeside
from regard.controls.image_tokens import Region
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import LEFT, TOKENS, pictures, with_edits
from regard.run.runner import run

HALVES = Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))
WHOLE = Region(box=(0, 0, 1, 1))


@check(
    "magicface",
    beyond="pictures of people, and regions that are found in maps: here they are given",
    same="weights that are exactly zero or one, whatever is drawn",
)
@torch.no_grad()
def magicface() -> Claims:
    """Without references nothing changes; regions read their own reference."""
    call = pictures(3)
    plain = with_edits(call, ())[0]
    none = with_edits(call, MagicFace((0, 1), HALVES, strength=0.0).edits())[0]
    weights = with_edits(call, MagicFace((0, 1), HALVES, layout_steps=0).edits())[1]
    own = weights[2]
    a, b = own[..., TOKENS : 2 * TOKENS], own[..., 2 * TOKENS :]
    crossed = max(float(a[:, ~LEFT].max()), float(b[:, LEFT].max()))
    pair = pictures(2)
    one = with_edits(pair, MagicFace((0,), (WHOLE,), layout_steps=0).edits())[0]
    replaced = run(pair.replace(k=pair.k[:1].expand(2, -1, -1, -1),
                                v=pair.v[:1].expand(2, -1, -1, -1))).out  # fmt: skip
    early = with_edits(call, MagicFace((0, 1), HALVES).edits())[1]
    sums = max(gap(x.sum(-1), torch.ones((), dtype=x.dtype)) for x in (weights, early))
    alone = PicturesBeside().read_by(1).sum()
    yield claim("R=0 equals the base", "difference", gap(none, plain)).equals(
        0.0, "the base self-attention"
    )
    yield claim("R=0 equals the base", "pictures read by a picture alone", int(alone)).equals(
        0, "none"
    )
    yield claim("exactly zero mass on reference b", "largest", crossed).equals(0.0, "zero")
    yield claim("RBA equals key/value replacement", "difference", gap(one[1], replaced[1])).within(
        1e-12, "attention to the reference alone", because=FLOAT64
    )
    yield claim("Rows sum to 1", "largest deviation", sums).within(1e-12, "1", because=FLOAT64)
