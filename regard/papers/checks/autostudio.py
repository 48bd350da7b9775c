"""A region is painted by its own subject's text; a text changes nothing outside of its region."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion import AutoStudio, SubjectTokens
from regard.controls.image_tokens import Region
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import LEFT, pictures
from regard.run.runner import run

WHOLE = (Region(box=(0, 0, 1, 1)),)
HALVES = (Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1)))


def _out(call: Call, made: AutoStudio) -> Tensor:
    """The output of the layer [b, h, n, e]."""
    (edit,) = made.edits()
    return edit.after(EditContext(call, Prompt()), run(call)).out


@check(
    "autostudio",
    beyond="its agents, subject-initialized generation, a trained adapter of images, and CMIGBench",
)
@torch.no_grad()
def autostudio() -> Claims:
    """A region is painted by its own subject's text, and nothing outside of it."""
    call = pictures(1, "cross")
    assert call.site is not None
    weights = [tuple(torch.randn(1, 16, 6, dtype=torch.float64)) for _ in range(2)]
    subjects = [
        SubjectTokens(torch.randn(3, 6, dtype=torch.float64), (call.site.module,), *weights)
        for _ in range(3)
    ]
    found = subjects[0].keys_at(call.site.module, call.h)
    assert found is not None
    k, v = found
    ordinary = (call.q @ k.transpose(2, 3) * call.d**-0.5).softmax(-1) @ v
    whole = _out(call, AutoStudio(subjects[:1], WHOLE, strength=1.0, image_strength=0.0))
    settings = {"strength": 0.7, "image_strength": 0.5}
    images = (subjects[2], subjects[2])
    one = _out(call, AutoStudio(subjects[:2], HALVES, images, **settings))
    other = _out(call, AutoStudio((subjects[0], subjects[2]), HALVES, images, **settings))
    moved = (one - other).abs().amax((0, 1, 3))
    yield claim(
        "With one subject covering", "largest difference of the output", gap(whole, ordinary)
    ).within(1e-9, "cross-attention to the subject's text, written out", because=FLOAT64)
    yield claim(
        "Disjoint masks", "largest change outside of the region", float(moved[LEFT].max())
    ).equals(0.0, "none")
    yield claim(
        "Disjoint masks", "least change of a token inside of it", float(moved[~LEFT].min())
    ).above(1e-6, "none", because="or the first claim would hold of an edit that does nothing")
