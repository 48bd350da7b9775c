"""A region learns of its own subject alone; one region is an IP-Adapter; 0 changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion import MSDiffusion, SubjectTokens
from regard.controls.image_tokens import Region
from regard.controls.prompt import Prompt
from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import LEFT, pictures
from regard.run.runner import run

BOXES = (Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1)))


def _subject(site: str, tokens: Tensor) -> SubjectTokens:
    to_k, to_v = torch.randn(2, 16, 6)
    return SubjectTokens(tokens, (site,), (to_k,), (to_v,))


def _out(call: Call, made: MSDiffusion) -> Tensor:
    """The output of the layer [b, h, n, e]."""
    result = run(call)
    (edit,) = made.edits()
    return edit.after(EditContext(call, Prompt()), result).out


@check("ms_diffusion", beyond="the trained resampler and adapter, dummy tokens, and pictures")
def ms_diffusion() -> Claims:
    """A region learns of its own subject alone; one region is an IP-Adapter."""
    call = pictures(1, "cross")
    assert call.site is not None
    tokens = torch.randn(2, 3, 6, requires_grad=True)
    subjects = tuple(_subject(call.site.module, x) for x in tokens)
    plain = run(call).out
    out = _out(call, MSDiffusion(subjects, BOXES, 1.0))
    (slope,) = torch.autograd.grad(out[:, :, LEFT].square().sum(), tokens)
    small = Region(box=(0, 0, 0.5, 0.5))
    one = _out(call, MSDiffusion(subjects[:1], (small,), 1.0)).detach() - plain
    outside = ~small.on((4, 6)).flatten()
    whole = _out(call, MSDiffusion(subjects[:1], (Region(box=(0, 0, 1, 1)),), 0.7))
    found = subjects[0].keys_at(call.site.module, call.h)
    assert found is not None
    k, v = (x.double() for x in found)
    weights = (call.q @ k.transpose(2, 3) * call.d**-0.5).softmax(-1)
    adapter = plain + 0.7 * (weights @ v)
    none = _out(call, MSDiffusion(subjects, BOXES, 0.0))
    yield claim(
        "exactly zero and image branch is zero",
        "largest gradient of the left half by the right subject",
        float(slope[1].abs().max()),
    ).equals(0.0, "zero")
    yield claim(
        "exactly zero and image branch is zero",
        "largest gradient by its own subject",
        float(slope[0].abs().max()),
    ).above(0, "zero")
    yield claim("exactly zero and image branch is zero", "what is added outside of all boxes",
                float(one[:, :, outside].abs().max())).equals(0.0, "zero")  # fmt: skip
    yield claim("equals IP-Adapter's decoupled", "largest difference", gap(whole, adapter)).within(
        1e-4, "its two attentions, written out", because=FLOAT32
    )
    yield claim("s=0 equals the base model", "outputs equal", torch.equal(none, plain)).equals(
        True, "bit for bit"
    )
