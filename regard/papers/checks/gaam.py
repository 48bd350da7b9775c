"""A Gaussian gate sums to one, ignores shift and scale, and finds a planted band of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.gate_networks import GaussianGate
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit


@check("gaam")
def gaussian_gate() -> Claims:
    """Gates sum to one, ignore shift and scale, and find a planted band of features."""
    layer, x = GaussianGate(32, heads=4, gaussians=3), torch.randn(2, 9, 32)
    sums = gap(layer.gate(x).sum(-1), torch.ones(2, 9, 4))
    moved = max(gap(layer.gate(x + 5), layer.gate(x)), gap(layer.gate(3 * x), layer.gate(x)))
    wide = GaussianGate(32, heads=1, gaussians=1)
    with torch.no_grad():
        wide.spreads.fill_(1e4)
    uniform = gap(wide.gate(x), torch.full((2, 9, 1, 32), 1 / 32))
    count = sum(p.numel() for p in layer.parameters())

    # One slice: a band that fills half of one would be its mirror image, class by class.
    gate, last = GaussianGate(32, heads=1, gaussians=2), nn.Linear(32, 2)

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        wanted = torch.randint(0, 2, (rows,))
        x = torch.randn(rows, 1, 32)
        x[:, 0, 8:12] += 3 * (2 * wanted[:, None] - 1)  # the band
        return x, wanted

    def loss() -> Tensor:
        x, wanted = batch(64)
        return F.cross_entropy(last(32 * gate(x)[:, 0]), wanted)

    fit([*gate.parameters(), *last.parameters()], loss, 300, 1e-2)
    x, _ = batch(2000)
    mean = gate.gate(x).detach().flatten(-2).mean((0, 1))
    factor = (mean - mean.min()) / (mean.max() - mean.min())
    yield claim("Gate sums to 1", "distance of sums from 1", sums).within(
        1e-4, "1", because=FLOAT32
    )
    yield claim("G=1, c large", "distance from 1/n", uniform).within(
        1e-6, "the uniform gate", because=FLOAT32
    )
    yield claim("Gate is invariant", "change of the gate", moved).within(
        1e-4, "the gate of x", because="float32: a layer norm of x + 5 and of 3 x keeps four digits"
    )
    yield claim("Parameter count", "parameters of 4 heads and 3 Gaussians", count).equals(
        24, "2 G H"
    )
    yield claim(
        "Planted informative",
        "channel of the highest importance factor",
        int(8 <= int(factor.argmax()) < 12),
    ).equals(1, "one of the planted band")
    yield claim("Planted informative", "mean factor of the band", float(factor[8:12].mean())).above(
        float(factor[torch.arange(32).sub(10).abs() > 2].mean()), "mean factor of the others"
    )  # because: a width of the band
