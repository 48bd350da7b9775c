"""The check of attention that does not mind where its points stand."""

from __future__ import annotations

import math

import torch
from torch import nn

from regard.layers.attention import Attention
from regard.layers.lie import LieTransformer, lift, logarithms, moved
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap


@check("lie_transformer")
def equivariant() -> Measured:
    """Moved points give the same; turning by a sampled angle permutes; a plain model minds."""
    f, points = torch.randn(2, 9, 3), torch.randn(2, 9, 2)
    still = LieTransformer(features=3, dim=32, heads=4, out=5)
    turning = LieTransformer(features=3, dim=32, heads=4, out=5, turns=4)
    shifted = carried = whole = 0.0
    for _ in range(10):
        by = torch.tensor([*(3 * torch.randn(2)).tolist(), 2 * math.pi * float(torch.rand(()))])
        flat = by * torch.tensor([1.0, 1.0, 0.0])
        shifted = max(shifted, gap(still(f, points + flat[:2]), still(f, points)))
        # Lifted with the same samples moved along, features of elements stay as they were.
        g = lift(points, turning.turns)
        wide = f.repeat_interleave(4, dim=1)
        carried = max(carried, gap(turning.elements(wide, moved(g, by)), turning.elements(wide, g)))
        # A quarter turn takes the four samples to themselves: the invariant output is unchanged.
        quarter = torch.tensor([float(by[0]), float(by[1]), math.pi / 2])
        turned = moved(lift(points, torch.zeros(1)), quarter)[..., :2]
        whole = max(whole, gap(turning(f, turned), turning(f, points)))
    g = lift(points, torch.tensor([0.0, 1.0, 2.5]))
    once = logarithms(g)
    # exp of the logarithm moves the first element to the second.
    angle = once[..., 2]
    safe = torch.where(angle.abs() < 1e-4, torch.ones_like(angle), angle)
    a = torch.where(angle.abs() < 1e-4, torch.ones_like(angle), safe.sin() / safe)
    b = torch.where(angle.abs() < 1e-4, angle / 2, (1 - safe.cos()) / safe)
    x, y = a * once[..., 0] - b * once[..., 1], b * once[..., 0] + a * once[..., 1]
    cos, sin = g[:, :, None, 2].cos(), g[:, :, None, 2].sin()
    back = torch.stack((cos * x - sin * y, sin * x + cos * y), -1) + g[:, :, None, :2]
    logs = gap(back, g[:, None, :, :2].expand_as(back))

    enter, plain = nn.Linear(5, 32), Attention(32, heads=4)
    by_place = [
        plain(enter(torch.cat((f, p), -1))).mean(1)
        for p in (points, points + torch.tensor([3.0, 1.0]))
    ]
    minds = gap(*by_place)
    return Measured(
        "points shifted give the same output; elements moved by any element of SE(2) keep their "
        "features; a turn by a sampled angle leaves the invariant output; logarithms lead from one "
        "element to another; attention on coordinates minds being shifted",
        max(shifted, carried, whole) < 1e-4 and logs < 1e-4 and minds > 0.01,
        {"shifted": shifted, "moved": carried, "turned by a sample": whole, "logarithms": logs,
         "plain attention, shifted": minds},
        left_out="energy of the toy springs",
    )  # fmt: skip
