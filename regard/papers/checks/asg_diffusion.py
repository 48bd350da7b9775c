"""No weight is plain patches, no mask no change; what is stale tends to what is not."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from regard.controls.diffusion.rf_solver import rf_solve
from regard.controls.diffusion.structure_guidance import StructureGuidance, predict_by_patches
from regard.papers.checks import Claims, check
from regard.papers.claims import claim

SIZE, STRIDE, TIMES = (4, 6), (2, 3), (1.0, 0.0)


@check("asg_diffusion", beyond="patches on several GPUs, maps of SDXL, and pictures")
@torch.no_grad()
def asg() -> Claims:
    """No weight is plain patches, no mask no change; what is stale tends to what is not."""
    z = torch.randn(1, 3, 9, 13, dtype=torch.float64)
    mix = torch.randn(3, 3, dtype=torch.float64) / 2

    def denoiser(x: Tensor, time: float) -> Tensor:
        """Linear in the latent: channels are mixed, and each place loses its patch's mean."""
        mixed = torch.einsum("cd,bdhw->bchw", mix, x)
        return mixed - 0.5 * x.mean((2, 3), keepdim=True) * (1 + time)

    def led(**settings: object) -> StructureGuidance:
        # Settings are typed object.
        return StructureGuidance(denoiser, SIZE, times=TIMES, stride=STRIDE, **settings)  # type: ignore[arg-type]

    plain = predict_by_patches(denoiser, z, 0.7, SIZE, STRIDE)
    none = led(weight=0.0)(z, 0.7)
    mask = torch.zeros(1, 1, 9, 13)
    mask[..., 6:] = 1.0
    some = led(mask=mask)(z, 0.7)
    changed = (some - plain).abs().amax((0, 1, 2))

    def apart(steps: int) -> float:
        line = [1 - i / steps for i in range(steps + 1)]
        one, two = (rf_solve(led(stale=x), z, line, order=1) for x in (True, False))
        return float((one - two).norm() / two.norm())

    distances = [apart(n) for n in (8, 16, 32, 64)]
    ratios = [b / a for a, b in pairwise(distances)]
    yield claim("w=0 gives plain patch", "predictions equal", torch.equal(none, plain)).equals(
        True, "those of patches alone"
    )
    yield claim(
        "M=0 regions are untouched", "largest change where the mask is 0",
        float(changed[:6].max()),
    ).equals(0.0, "none")  # fmt: skip
    yield claim(
        "M=0 regions are untouched", "largest change where it is 1", float(changed[6:].max())
    ).above(1e-3, "none", because="or the first claim would hold of an edit that does nothing")
    yield claim(
        "with a linear toy denoiser",
        "largest ratio of distances as steps halve, 8 to 64",
        max(ratios),
    ).below(1, "the distance before", times=0.75, because="first order: a half in the limit")
