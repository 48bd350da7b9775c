"""ASGDiffusion: large pictures by patches, guided by the prediction for a small copy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method

# What a model predicts for a latent at a time: noise, or a velocity.
Prediction = Callable[[Tensor, float], Tensor]


def patch_starts(length: int, size: int, stride: int) -> list[int]:
    """Return the starts of patches of a size that cover a length.

    >>> patch_starts(10, 4, 3), patch_starts(11, 4, 3)
    ([0, 3, 6], [0, 3, 6, 7])
    """
    starts = list(range(0, length - size + 1, stride))
    return starts if starts[-1] == length - size else [*starts, length - size]


def predict_by_patches(
    predict: Prediction, z: Tensor, time: float, size: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Return the mean of the predictions of overlapping patches of z [b, c, h, w].

    >>> z = torch.randn(1, 2, 5, 6)
    >>> torch.allclose(predict_by_patches(lambda x, t: 2 * x, z, 0.0, (3, 4), (2, 2)), 2 * z)
    True
    """
    total, times = torch.zeros_like(z), torch.zeros_like(z[:1, :1])
    for top in patch_starts(z.shape[2], size[0], stride[0]):
        for left in patch_starts(z.shape[3], size[1], stride[1]):
            part = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            total[part] += predict(z[part], time)
            times[part] += 1
    return total / times


def object_mask(maps: Tensor) -> Tensor:
    """Return maps [b, h, w] of words, scaled from 0 to 1 in each picture, as [b, 1, h, w].

    `maps` are the weights of places on the content words, averaged over layers and heads
    (`TextMaps`).

    >>> object_mask(torch.tensor([[[1.0, 3.0]]])).tolist()
    [[[[0.0, 1.0]]]]
    """
    low, high = (x(maps, dim=(1, 2), keepdim=True) for x in (torch.amin, torch.amax))
    return ((maps - low) / (high - low).clamp(min=1e-12))[:, None]


@method(
    "asg_diffusion",
    call="from regard.controls.diffusion import StructureGuidance, rf_solve\n"
    "guided = StructureGuidance(velocity, (64, 64), times=(1.0, 0.0))\n"
    "rf_solve(guided, noise, [1 - i / 20 for i in range(21)], order=1)",
)
class StructureGuidance:
    """Predict noise, or a velocity, for a large latent by patches, guided by a small copy of it.

    prediction = patches + w M (up(prediction of the copy) - low frequencies of patches)

    `size` is the trained size, `stride` the distance of patches (half the size by default), `mask`
    the places M to guide: [b, 1, h, w] from 0 to 1 on any grid, a function of the small copy and
    the time, or None for all. The weight falls as a cosine from `weight` at the first of `times` to
    0 at the last, so that structure is fixed early and details are free late. With `stale`, a step
    is guided by the prediction of the step before, so that patches need not wait for it. It has
    state: create one for each picture. (ASGDiffusion, Li et al. 2024)

    >>> guided = StructureGuidance(lambda z, t: z, (4, 4), times=(1.0, 0.0))
    >>> guided(torch.randn(1, 2, 8, 6), 1.0).shape
    torch.Size([1, 2, 8, 6])
    """

    def __init__(
        self, predict: Prediction, size: tuple[int, int], *, times: tuple[float, float],
        stride: tuple[int, int] | None = None, weight: float = 1.0,
        mask: Tensor | Callable[[Tensor, float], Tensor] | None = None, stale: bool = True,
    ) -> None:  # fmt: skip
        stride = stride or (max(size[0] // 2, 1), max(size[1] // 2, 1))
        if min(*size, *stride) < 1 or stride[0] > size[0] or stride[1] > size[1]:
            fail(
                ValueRangeError, "stride", str(stride), f"from 1 to the size {size}, so that "
                "patches cover the picture", "leave it out: half of the size",
            )  # fmt: skip
        if not math.isfinite(weight):
            fail(ValueRangeError, "weight", weight, "a number", "pass weight=1.0")
        if times[0] == times[1]:
            fail(ValueRangeError, "times", str(times), "the first and the last", "pass (1.0, 0.0)")
        if isinstance(mask, Tensor) and (mask.dim() != 4 or mask.shape[1] != 1):
            fail(ShapeError, "mask", shape_of(mask), "[b, 1, h, w]", "pass object_mask(maps)")
        self.predict, self.size, self.stride = predict, size, stride
        self.times, self.weight, self.mask, self.stale = times, weight, mask, stale
        # From the step before: the prediction for the small copy, and its mask.
        self.found: tuple[Tensor, Tensor | None] | None = None

    def weight_at(self, time: float) -> float:
        """Return the weight at a time."""
        share = (time - self.times[0]) / (self.times[1] - self.times[0])
        return self.weight * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2

    def __call__(self, z: Tensor, time: float) -> Tensor:
        """Return the prediction for z [b, c, h, w] at a time."""
        if z.dim() != 4 or z.shape[2] < self.size[0] or z.shape[3] < self.size[1]:
            fail(
                RuleError, "z", shape_of(z), f"[b, c, h, w] of at least {self.size}",
                "run the model itself on what it was trained for",
            )  # fmt: skip
        made = predict_by_patches(self.predict, z, time, self.size, self.stride)
        weight = self.weight_at(time)
        if weight == 0:
            return made
        small = adaptive_avg_pool2d(z, self.size)
        mask = self.mask(small, time) if callable(self.mask) else self.mask
        now = (self.predict(small, time), mask)
        led, mask = self.found if self.stale and self.found is not None else now
        self.found = now
        away = _enlarged(led - adaptive_avg_pool2d(made, self.size), z)
        if mask is not None:
            away = away * _enlarged(mask.to(away), z)
        return made + weight * away


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
