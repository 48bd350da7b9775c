"""ViCrop: crop the part of a picture that a question attends to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method

SIDES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)


class Crop(NamedTuple):
    """A box in cells of a map: rows [top, bottom), columns [left, right); `gain` chose its size."""

    top: int
    left: int
    bottom: int
    right: int
    gain: float

    def pixels(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right) in a picture of a size, for a map of a grid.

        >>> Crop(0, 1, 1, 2, 0.0).pixels((2, 2), (100, 50))
        (0, 25, 50, 50)
        """
        high, wide = size[0] / grid[0], size[1] / grid[1]
        return (
            round(self.top * high), round(self.left * wide), round(self.bottom * high),
            round(self.right * wide),
        )  # fmt: skip


def relative_map(asked: Tensor, general: Tensor) -> Tensor:
    """Return the ratio, by cell, of the attention of a question to that of a general one.

    >>> relative_map(torch.tensor([[0.2, 0.4]]), torch.tensor([[0.2, 0.1]])).tolist()
    [[1.0, 4.0]]
    """
    if asked.shape != general.shape:
        fail(
            ShapeError, "general", shape_of(general), f"{shape_of(asked)}, as asked",
            "read both maps at one layer",
        )  # fmt: skip
    return asked / general.clamp(min=torch.finfo(general.dtype).tiny)


@method(
    "vicrop",
    call="from regard.controls.crops import best_crop, relative_map\n"
    "best_crop(relative_map(asked, general), base=8).pixels((24, 24), image.size)",
)
def best_crop(found: Tensor, base: int, sides: tuple[float, ...] = SIDES) -> Crop:
    """Choose the box whose sum in a map [rows, columns] differs most from its neighbors.

    For each side of r * base cells the box with the largest sum is found; of these the size is
    chosen whose sum per cell differs most from the mean of the adjacent boxes. Sums come from one
    integral image. (Zhang et al. 2025)

    >>> dark = torch.zeros(8, 8); dark[5, 2] = 1.0
    >>> crop = best_crop(dark, 2)
    >>> crop.bottom - crop.top, crop.top <= 5 < crop.bottom, crop.left <= 2 < crop.right
    (2, True, True)
    """
    if found.dim() != 2 or not bool(found.isfinite().all()):
        fail(ShapeError, "found", shape_of(found), "a finite map [rows, columns]", "take one image")
    high, wide = found.shape
    if not 1 <= base <= min(high, wide):
        fail(ValueRangeError, "base", base, f"1 to {min(high, wide)} cells", "name a smaller side")
    best: Crop | None = None
    for side in dict.fromkeys(min(round(base * r), high, wide) for r in sides):
        sums = box_sums(found, side)
        place = int(sums.argmax())
        y, x = divmod(place, sums.shape[1])
        around = {
            (min(max(a, 0), sums.shape[0] - 1), min(max(b, 0), sums.shape[1] - 1))
            for a in (y - side, y, y + side)
            for b in (x - side, x, x + side)
        }
        near = [float(sums[a, b]) for a, b in around - {(y, x)}]
        mean = sum(near) / len(near) if near else 0.0
        gain = (float(sums[y, x]) - mean) / side**2
        if best is None or gain > best.gain + 1e-12:
            best = Crop(y, x, y + side, x + side, gain)
    assert best is not None
    return best


def box_sums(found: Tensor, side: int) -> Tensor:
    """Sum a map over all boxes of a side, [rows - side + 1, columns - side + 1].

    >>> box_sums(torch.ones(3, 4), 2).tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    whole = torch.nn.functional.pad(found.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    sums = whole[side:, side:] - whole[:-side, side:] - whole[side:, :-side] + whole[:-side, :-side]
    return sums.to(found.dtype)


def with_crop(picture: Tensor, crop: Crop, grid: tuple[int, int]) -> Tensor:
    """Return a picture [c, h, w] and its crop at the same size, as two images [2, c, h, w].

    `grid` is that of the map in which the crop was chosen. The crop takes as many tokens as the
    picture, so the prompt needs the image tokens twice.

    >>> both = with_crop(torch.rand(3, 8, 8), Crop(0, 0, 2, 2, 0.0), (2, 2))
    >>> both.shape, bool(torch.equal(both[0], both[1]))
    (torch.Size([2, 3, 8, 8]), True)
    """
    size = (picture.shape[-2], picture.shape[-1])
    top, left, bottom, right = crop.pixels(grid, size)
    part = picture[None, :, top:bottom, left:right]
    near = torch.nn.functional.interpolate(
        part, size, mode="bilinear", align_corners=False, antialias=True
    )
    return torch.cat((picture[None], near))
