"""Groups are exact under their token mask, counted in closed form, and whole in the order."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.diffusion_models import chosen, on_grid
from regard.papers.shared.measure import gap
from regard.policies.grids import Grat, GratCrissCross
from regard.run import runner
from regard.run.api import attend
from regard.run.executor import Yes
from regard.run.folding import make_fold
from regard.run.plan import EXECUTORS


def folded(call: Call) -> Tensor:
    """Run a call in tiles, as a large one would be."""
    executor = "folded" if isinstance(EXECUTORS["folded"].can(call), Yes) else None
    return attend(call.q, call.k, call.v, call.rule, executor=executor)


def by_words(grid: tuple[int, ...], group: tuple[int, ...], radius: int | None) -> Tensor:
    """Which tokens meet, written pair by pair: near groups, or (no radius) groups on a level."""
    n = prod(grid)
    place, left = [], torch.arange(n)
    for size in reversed(grid):
        place.append(left % size)
        left = left // size
    boxes = [x // g for x, g in zip(reversed(place), group, strict=True)]
    if radius is None:
        return torch.stack([x[:, None] == x for x in boxes]).any(0)
    meets = torch.ones(n, n, dtype=torch.bool)
    for x, size, g in zip(boxes, grid, group, strict=True):
        many = -(-size // g)
        middle = x.clamp(min(radius, many - 1), max(many - 1 - radius, 0))
        if 2 * radius + 1 < many:
            meets &= (x[None] - middle[:, None]).abs() <= radius
    return meets


@check(
    "grat", beyond="pictures of trained models; times are in benchmarks/results/shrink-vision.json"
)
def grat() -> Claims:
    """Groups are exact under their token mask, counted in closed form, and whole in the order."""
    one = on_grid((24, 20), 7)
    made = {"one group": Grat(group=(24, 20)), "all around": Grat(group=(8, 8), radius=3)}
    dense = runner.run(one).out
    whole = max(gap(folded(chosen(x, one)[0]), dense) for x in made.values())
    off, counts = 0.0, []
    cases: Any = (((24, 20), (8, 8)), ((5, 9, 12), (2, 4, 4)), ((7, 7), (3, 2)))
    for grid, group in cases:
        for kind, radius in ((Grat(group, 1), 1), (GratCrissCross(group), None)):
            call = on_grid(grid, 7)
            run, _ = chosen(kind, call)
            mask = torch.ones(call.n, call.n, dtype=torch.bool)
            mask[:-7, :-7] = by_words(grid, group, radius)
            off = max(off, gap(folded(run), sdpa(call.q, call.k, call.v, mask)))
            counts.append(bool((run.rule.support.matrix(call.n)[0, 0] == mask).all()))
    closed = []
    grids: Any = ((32, 48), (8, 16, 24))
    for grid in grids:
        group = (4, 8, 8)[-len(grid) :]
        many = [s // g for s, g in zip(grid, group, strict=True)]
        run, _ = chosen(GratCrissCross(), on_grid(grid))
        level = prod(many) - prod(m - 1 for m in many)
        pairs = int(run.rule.support.matrix(prod(grid))[0, 0].sum())
        closed.append(pairs == prod(many) * level * prod(group) ** 2)
    large = on_grid((32, 48), 64, h=1)
    fold = make_fold(chosen(Grat(radius=1), large)[0], 0, 0)
    assert fold.order_q is not None
    back = torch.equal(fold.order_q[fold.order_q.argsort()], torch.arange(large.n))
    blocks = all(g.mask is None for layer in fold.layers for g in layer)
    yield claim("One group (or radius", "largest difference", whole).within(
        1e-5, "dense attention", because=FLOAT32
    )
    yield claim(
        "result equals dense", "largest difference, ragged groups in 2 and 3 axes", off
    ).within(1e-5, "torch's attention under the token mask", because=FLOAT32)
    yield claim("result equals dense", "cases whose pairs are counted right", sum(counts)).equals(
        len(counts), "pairs of the mask"
    )
    yield claim(
        "computed-block count", "grids that compute the closed form's pairs", sum(closed)
    ).equals(len(closed), "all")
    yield claim("computed-block count", "tiles that are partial", int(not blocks)).equals(0, "none")
    yield claim("permutation round trip", "the order goes back", back).equals(True, "the identity")
