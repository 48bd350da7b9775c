"""With nothing asked nothing changes; words keep to their pixels, and a temperature sharpens."""

from __future__ import annotations

from itertools import pairwise

import torch

from regard.controls.diffusion import AttentionModulation, Subject, TextPositions
from regard.controls.image_tokens import Region
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import LEFT, TOKENS, pictures, with_edits

PAIR = (
    Subject(TextPositions((1, 2)), Region(box=(0, 0, 1, 0.5))),
    Subject(TextPositions((3,)), Region(box=(0, 0.5, 1, 1))),
)


@check(
    "attention_modulation_t2i",
    beyond="alignment on prompts of several entities; regions found in maps: here they are given",
)
@torch.no_grad()
def attention_modulation() -> Claims:
    """With nothing asked nothing changes; words keep to their pixels."""
    same, masses, sums, rises = [], [], [], []
    for kind in ("self", "cross", "joint"):
        call = pictures(2, kind)
        off = AttentionModulation(PAIR, 0.0, temperature=1.0, gain=0.0)
        same.append(gap(with_edits(call, off.edits())[0], with_edits(call, ())[0]))
        weights = with_edits(call, AttentionModulation(PAIR).edits())[1]
        sums.append(gap(weights.sum(-1), torch.ones((), dtype=weights.dtype)))
        if kind != "self":
            text = 0 if kind == "cross" else TOKENS
            rows = weights[:, :, :TOKENS]
            masses.append(float(rows[:, :, LEFT][..., text + 3].max()))
            masses.append(float(rows[:, :, ~LEFT][..., text + 1 : text + 3].max()))
    call = pictures(2)
    found = []
    for temperature in (1.0, 0.8, 0.5):
        w = with_edits(call, AttentionModulation(PAIR, temperature=temperature).edits())[1]
        found.append(-torch.special.xlogy(w, w).sum(-1))
    rises = [float((b - a).max()) for a, b in pairwise(found)]
    yield claim("tau=1, unit weights and mask off", "largest difference", max(same)).equals(
        0.0, "the unmodified attention"
    )
    yield claim("gives to B's tokens is exactly 0", "largest", max(masses)).equals(0.0, "0")
    yield claim("gives to B's tokens is exactly 0", "largest deviation of a sum", max(sums)).within(
        1e-12, "1", because=FLOAT64
    )
    yield claim("smaller tau strictly lowers", "largest change of a row's entropy", max(rises)
                ).below(0, "0")  # fmt: skip
