"""An object that stays is the source; words are kept in place; a moved object is the source's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from regard.controls.context import EditContext
from regard.controls.diffusion import DiffUHaul, TextPositions
from regard.controls.diffusion.dragging import AnchorFeatures, MovedRegion, OnlyInRegion
from regard.controls.edit import AttentionEdit, apply
from regard.controls.image_tokens import Region
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.core.result import Result
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import GRID, LEFT, TOKENS, alike, pictures
from regard.run.runner import run

LEFT_HALF, RIGHT_HALF = Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))
# The noise on queries of the moved object, in units of their deviation.
NOISE = 0.2


def _run(call: Call, edits: tuple[AttentionEdit, ...]) -> Tensor:
    """The output of a call under edits, [b, h, n, e]."""
    new, known = apply(edits, EditContext(call, Prompt()))
    made = run(new)
    for edit, at in zip(edits, known, strict=True):
        made = edit.after(at, made)
    return made.out


def _moved(late: Call) -> Tensor:
    """Cosines of what the moved object gets with what the object of the source gets."""
    half = GRID[1] // 2
    there = torch.arange(TOKENS)[LEFT]
    here = there + half
    q = late.q.clone()
    q[1, :, here] = q[0, :, there] + NOISE * q.std() * torch.randn_like(q[0, :, there])
    out = _run(late.replace(q=q), DiffUHaul(LEFT_HALF, RIGHT_HALF, soft_steps=0).edits())
    source, made = (out[row].transpose(0, 1).flatten(1) for row in (0, 1))
    return cosine_similarity(made[here], source[there])


@check("diffuhaul", beyond="BlobGEN, real pictures, blended latents, and the users' judgments")
def diffuhaul() -> Claims:
    """An object that stays is the source; words are kept in place."""
    same = [alike(pictures(2, "self", step)) for step in (0, 30)]
    still = DiffUHaul(LEFT_HALF, LEFT_HALF).edits()
    outs = [_run(call, still) for call in same]
    apart = max(gap(out[1], run(call).out[0]) for out, call in zip(outs, same, strict=True))
    joint = pictures(2, "joint")
    k = joint.k.clone().requires_grad_()
    v = joint.v.clone().requires_grad_()
    words = OnlyInRegion(TextPositions((1,)), MovedRegion(LEFT_HALF, RIGHT_HALF))
    out = _run(joint.replace(k=k, v=v), (words,))
    grads = []
    for row, outside in ((0, ~LEFT), (1, LEFT)):
        picture = out[row, :, :TOKENS][:, outside]
        found = torch.autograd.grad(picture.square().sum(), (k, v), retain_graph=True)
        grads += [float(x[row, :, TOKENS + 1].abs().max()) for x in found]
    inside = torch.autograd.grad(out[0, :, :TOKENS][:, LEFT].square().sum(), v)[0]
    features = torch.randn(1, 2, TOKENS, 8, dtype=torch.float64).expand(2, -1, -1, -1)
    late = pictures(2, "self", 30)
    copied = AnchorFeatures(MovedRegion(LEFT_HALF, LEFT_HALF)).after(
        EditContext(late, Prompt()), Result(features)
    )
    cosines = _moved(late)
    yield claim("Unmoved blob with the same", "largest difference to the source", apart).within(
        1e-9, "the source picture run alone", because=FLOAT64
    )
    yield claim("gradient of visual tokens", "largest gradient outside", max(grads)).equals(
        0.0, "zero"
    )
    yield claim(
        "gradient of visual tokens", "largest gradient inside",
        float(inside[0, :, TOKENS + 1].abs().max()),
    ).above(0, "zero")  # fmt: skip
    yield claim(
        "nearest-neighbour copy with equal", "largest change", gap(copied.out, features)
    ).equals(0.0, "none")
    yield claim("toy translation test", "mean cosine", float(cosines.mean())).above(
        0.95, "the catalogue's number", because=CATALOGUE
    )
