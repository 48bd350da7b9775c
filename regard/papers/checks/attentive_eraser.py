"""An object gets no weight, and its place looks around less sharply; without one nothing is led."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.diffusion import AttentiveEraser
from regard.controls.image_tokens import Region
from regard.controls.noise_guidance import mixed
from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import GRID, pictures, with_edits

OBJECT = Region(box=(0, 0, 0.5, 0.5))


def _weights(call: Call, softness: float) -> Tensor:
    return with_edits(call, AttentiveEraser(OBJECT, cells=0, softness=softness).edits())[1]


def _entropy(weights: Tensor) -> Tensor:
    found: Tensor = -torch.special.xlogy(weights, weights).sum(-1)
    return found


@check("attentive_eraser", beyond="pictures, and comparisons with methods that are trained")
@torch.no_grad()
def attentive_eraser() -> Claims:
    """An object gets no weight, and its place looks around less sharply."""
    call = pictures(2)
    inside = OBJECT.on(GRID).flatten()
    hard, soft, softer = (_weights(call, x) for x in (1.0, 0.3, 0.1))
    plain = with_edits(call, ())[0]
    led = max(gap(mixed(plain, plain, s), plain) for s in (0.0, 1.0, 9.0))
    kept = hard[:, :, :, ~inside]
    scores = (call.q @ call.k.transpose(2, 3) * call.d**-0.5)[..., ~inside]
    pairs = ((hard, soft), (soft, softer))
    rises = [_entropy(b)[..., inside] - _entropy(a)[..., inside] for a, b in pairs]
    mass = max(float(x[..., inside].max()) for x in (hard, soft))
    sums = max(gap(x.sum(-1), torch.ones((), dtype=x.dtype)) for x in (hard, soft))
    yield claim("Object columns receive exactly zero", "largest weight", mass).equals(0.0, "zero")
    yield claim("Object columns receive exactly zero", "largest deviation of a sum", sums).within(
        1e-12, "1", because=FLOAT64
    )
    yield claim("empty mask gives", "difference that guidance makes of no difference", led).equals(
        0.0, "none at 0, 1, 9"
    )
    yield claim("makes both row types equal", "difference", gap(kept, scores.softmax(-1))).within(
        1e-12, "one softmax over what is left, for all rows", because=FLOAT64
    )
    yield claim("strictly raises object rows", "least rise of entropy",
                min(float(x.min()) for x in rises)).above(0, "0")  # fmt: skip
