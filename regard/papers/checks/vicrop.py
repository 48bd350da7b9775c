"""A bright cell is cropped at the smallest size; sums over boxes are those of brute force."""

from __future__ import annotations

import torch

from regard.controls.crops import best_crop, box_sums, relative_map
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap

BASE = 3


@check(
    "vicrop",
    left_out={"Appending a crop": "tokens of a model of images, of which none ships"},
    beyond="questions about small details of pictures",
)
def vicrop() -> Claims:
    """A bright cell is cropped at the smallest size; sums over boxes are those of brute force."""
    inside, sizes = 0, []
    for _ in range(50):
        found = 0.01 * torch.rand(12, 17, dtype=torch.float64)
        y, x = int(torch.randint(0, 12, ())), int(torch.randint(0, 17, ()))
        found[y, x] = 1.0
        crop = best_crop(found, BASE)
        inside += crop.top <= y < crop.bottom and crop.left <= x < crop.right
        sizes.append(crop.bottom - crop.top)
    some = torch.rand(9, 11, dtype=torch.float64)
    ones = relative_map(some, some)
    apart = 0.0
    for side in range(1, 8):
        brute = torch.stack(
            [
                torch.stack([some[a : a + side, b : b + side].sum() for b in range(12 - side)])
                for a in range(10 - side)
            ]
        )
        apart = max(apart, gap(box_sums(some, side), brute))
    yield claim("Planted bright cell", "of 50 maps, crops with the cell", inside).equals(50, "all")
    yield claim("Planted bright cell", "largest side", max(sizes)).equals(BASE, "the smallest size")
    yield claim("q'=q gives", "distance from ones", gap(ones, torch.ones_like(ones))).equals(
        0.0, "ones"
    )
    yield claim("Box search by integral image", "difference of sums", apart).within(
        1e-12, "sums of every box", because=FLOAT64
    )
