"""Tiles from a kept log-sum-exp are exact, stay good while a model drifts, and suit heads."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.diffusion_models import tiny_wan, wan_out
from regard.papers.shared.measure import gap
from regard.policies.online_blocks import choose
from regard.policies.registry import policy
from regard.run.mass import log_weight, tile_mass
from regard.run.reference import weight_matrix
from regard.verbs import shrink


def blocky(n: int, block: int, sharpness: tuple[float, ...]) -> Call:
    """Attention in blocks: tokens near the center of theirs, by heads of different sharpness."""
    h = len(sharpness)
    q, k = (
        (torch.randn(1, h, n // block, 1, 32) + 0.3 * torch.randn(1, h, n // block, block, 32))
        for _ in "qk"
    )
    sharp = torch.tensor(sharpness).view(1, h, 1, 1)
    return Call.of(q.flatten(2, 3) * sharp, k.flatten(2, 3), torch.randn(1, h, n, 32))


def turned(call: Call, cosine: float) -> Call:
    """Every query and key turned to a cosine from where it was, each in a direction of its own."""
    new = []
    for x in (call.q, call.k):
        away = torch.randn_like(x)
        away = away - (away * x).sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True) * x
        away = away * (x.norm(dim=-1, keepdim=True) / away.norm(dim=-1, keepdim=True))
        new.append(cosine * x + (1 - cosine**2) ** 0.5 * away)
    return call.replace(q=new[0], k=new[1])


@check("adaspa", beyond="trained video models; a fused kernel of the search")
def adaspa() -> Claims:
    """Tiles from a kept log-sum-exp are exact, stay good while a model drifts, and suit heads."""
    n, block, h, keep = 1024, 64, 6, 0.2
    call = blocky(n, block, (0.5, 1.0, 1.5, 2.0, 2.5, 3.0))
    lse = log_weight(call)
    mass = tile_mass(call, block, lse)
    blocks = weight_matrix(call)[0].unflatten(2, (-1, block)).unflatten(4, (-1, block)).sum((3, 5))
    exact, rows = gap(mass, blocks), gap(mass.sum(-1), torch.full((1, h, n // block), float(block)))
    none = torch.zeros(n // block, dtype=torch.bool)
    everything = bool(choose(mass, none, 1.0, 0.1).all())

    def recall(tiles_: Tensor, true: Tensor) -> float:
        return float((true * tiles_).sum() / true.sum())

    now = call
    first = choose(mass, none, keep, 0.1)
    true = tile_mass(turned(now, 0.98), block)
    lost = recall(choose(true, none, keep, 0.1), true) - recall(first, true)
    uneven = blocky(n, block, (0.4, 0.5, 0.6, 8.0, 10.0, 12.0))
    true = tile_mass(uneven, block)
    later = tile_mass(turned(uneven, 0.98), block)
    # Tiles are chosen on one step and tried on the next, so that no budget can win by itself.
    uniform = recall(choose(true, none, keep), later)
    adaptive = recall(choose(true, none, keep, 0.1), later)
    sharp = recall(choose(later, none, keep), later) - recall(choose(true, none, keep), later)
    model, inputs = tiny_wan()
    plain = [wan_out(model, inputs, t) for t in (9, 8, 7)]
    with shrink(model, policy("adaspa", block=4, searches=(1,), least=2), keep=0.999,
                check=False):  # fmt: skip
        off = max(gap(wan_out(model, inputs, t), x) for t, x in zip((9, 8, 7), plain, strict=True))
    yield claim("M from LSE equals", "largest difference of tile sums", exact).within(
        1e-5 * block, "block sums of dense softmax", because="1e-5 of a row, and 64 rows of a block"
    )
    yield claim("M from LSE equals", "difference of row sums", rows).within(
        1e-5 * block, "b", because="as above"
    )
    yield claim("s=0 equals dense", "all tiles are chosen", everything).equals(True, "all")
    yield claim(
        "s=0 equals dense", "difference of a video model at a budget of everything", off
    ).within(1e-5, "the model", because=FLOAT32)
    yield claim("On blocky Q,K", "mass that reused tiles lose, mild heads", lost).below(
        0.002, "fresh ones", because=CATALOGUE
    )
    yield claim("On blocky Q,K", "mass that reused tiles lose, half the heads sharp", sharp).below(
        0.002, "fresh ones", because=CATALOGUE
    )
    yield claim(
        "Adaptive per-head", "recall of budgets by head, on another step", adaptive
    ).at_least(uniform, "uniform budgets")
