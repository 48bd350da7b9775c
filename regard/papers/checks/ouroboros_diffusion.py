"""A tail has the latent's low frequencies; empty masks and identical frames change nothing."""

from __future__ import annotations

import torch

from regard.controls.diffusion import PicturesBeside, ReadPictures, SubjectAcrossFrames, tail_latent
from regard.controls.image_tokens import Region
from regard.controls.token_sets import TokenMask
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import TOKENS, alike, pictures, with_edits

WHOLE = Region(box=(0, 0, 1, 1))


@check("ouroboros_diffusion", beyond="endless video, and guidance by the memory of a subject")
@torch.no_grad()
def ouroboros() -> Claims:
    """A tail has the latent's low frequencies; empty masks and identical frames change nothing."""
    latent, noise = torch.randn(2, 4, 32, 48)
    tail = tail_latent(latent, noise, 0.25)
    a, b, t = (torch.fft.fft2(x) for x in (latent, noise, tail))
    # because: the cut-off that is asked for
    rows, columns = (torch.fft.fftfreq(n).abs() * 2 <= 0.25 for n in (32, 48))
    low = rows[:, None] & columns
    far = max(float((t - a)[:, low].abs().max()), float((t - b)[:, ~low].abs().max()))
    call = pictures(3)
    nothing = TokenMask(torch.arange(TOKENS + 1) == TOKENS)
    empty = with_edits(call, (ReadPictures(PicturesBeside(window=4, region=nothing)),))[0]
    same = alike(pictures(3))
    shared = with_edits(same, SubjectAcrossFrames(WHOLE).edits())[0]
    yield claim("Tail spectrum equals", "largest difference of a coefficient", far).within(
        1e-3, "that of the source below, of the noise above",
        because="float32 sums of 1,536 numbers, which are of size 39",
    )  # fmt: skip
    yield claim("overall variance stays about 1", "variance", float(tail.var())).within(
        0.1, "1", value=1.0, because="6,144 numbers: 5 deviations of a variance are 0.09"
    )
    yield claim("With empty masks", "difference", gap(empty, with_edits(call, ())[0])).equals(
        0.0, "per-frame attention"
    )
    yield claim("identical frames and full masks", "difference",
                gap(shared, with_edits(same, ())[0])).within(
        1e-12, "per-frame attention", because=FLOAT64
    )  # fmt: skip
