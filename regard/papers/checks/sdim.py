"""Buckets agree as often as angles say; tables add up; a candidate's cost is fixed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from regard.layers.hashing import HashedInterest
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.measure import gap


@check("sdim")
def hashed() -> Claims:
    """Buckets agree as often as angles say; tables add up; a candidate's cost is fixed."""
    worst, layer = 0.0, HashedInterest(32).eval()
    for angle in torch.linspace(0.1, math.pi - 0.1, 7):
        a = F.normalize(torch.randn(32), dim=0)
        b = torch.randn(32)
        b = F.normalize(b - (a @ b) * a, dim=0)
        pair = torch.stack((a, torch.cos(angle) * a + torch.sin(angle) * b))[None]
        met = 0.0
        for _ in range(2000):
            codes = layer.codes(pair)[0]
            met += float((codes[0] == codes[1]).float().mean()) / 2000
            layer.directions.normal_()
        worst = max(worst, abs(met - (1 - float(angle) / math.pi) ** 3))
    x, behaviors = torch.randn(1, 4, 32), torch.randn(1, 200, 32)
    with torch.no_grad():
        values, codes = layer.to_v(behaviors), layer.codes(behaviors)
        agree = layer.codes(x)[:, :, None] == codes[:, None]  # [b, n, m, groups]
        direct = torch.einsum("bnmg,bmd->bngd", agree.float(), values)
        direct = F.normalize(direct, dim=-1).mean(2)
        table = sum(layer.table(behaviors[:, i : i + 2]) for i in range(0, 200, 2))
        lookup = max(gap(layer(x, behaviors), direct), gap(layer.gather(x, table), direct))
    sizes = [layer.table(torch.randn(1, m, 32)).numel() for m in (100, 10_000)]
    yield claim("Mean over 2000", "largest distance of seven angles", worst).within(
        0.02, "(1 - theta / pi)^tau", because=CATALOGUE
    )
    yield claim("table lookup", "difference, at once and after 100 insertions", lookup).within(
        1e-6, "the direct masked sum", because=CATALOGUE
    )
    yield claim("candidate-time operations", "sums read at T = 10K", sizes[1]).equals(
        sizes[0], "at T = 100"
    )
