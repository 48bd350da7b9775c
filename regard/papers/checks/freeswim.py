"""Windows are of the trained size everywhere, and the branch beside costs what it is run."""

from __future__ import annotations

from math import prod

import torch

from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, FLOAT64, claim
from regard.papers.shared.diffusion_models import chosen, on_grid, tiny_wan, wan_out
from regard.papers.shared.measure import gap
from regard.policies.larger import FreeSwim
from regard.policies.registry import policy
from regard.run.counting import recording
from regard.verbs import shrink


class Covering(FreeSwim):
    """Windows that cover all, run as windows all the same."""

    def kernel(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Take the whole grid."""
        return grid


def met(call: Call) -> float:
    """FLOPs of the pairs that a rule lets meet: so small a grid is computed whole, under a mask."""
    pairs = call.h * int(call.rule.support.matrix(call.n, call.m).sum())
    return 2.0 * pairs * (call.d + call.e)


@check(
    "freeswim",
    beyond="videos of a trained model beyond its size, and the upsampling before it",
    same="pairs and costs are counted, whatever is drawn",
)
def freeswim() -> Claims:
    """Windows are of the trained size everywhere, and the branch beside costs what it is run."""
    sizes = []
    for grid, window in (((2, 12, 9), (4, 6)), ((1, 7, 16), (6, 5)), ((3, 5, 11), (9, 3))):
        run, _ = chosen(policy("freeswim", window=window), on_grid(grid))
        counts = run.rule.support.matrix(prod(grid)).sum(-1).unique().tolist()
        sides = [min(2 * (w // 2) + 1, s) for w, s in zip(window, grid[1:], strict=True)]
        sizes.append(counts == [grid[0] * prod(sides)])
    call = on_grid((2, 5, 7))
    same = chosen(policy("freeswim", window=(5, 7)), call)[0] is call
    ratio = chosen(policy("freeswim", window=(3, 3)), call)[0].q / call.q
    factor = abs(float(ratio.mean()) - (torch.tensor(18.0).log() / torch.tensor(9.0).log()) ** 0.5)
    model, inputs = tiny_wan()
    plain = wan_out(model, inputs)
    with shrink(model, Covering(window=(4, 6), every=1, ratio=1.0), check=False):
        override = gap(wan_out(model, inputs), plain)
    cost = {}
    for every in (1, 2, 4):
        with shrink(model, policy("freeswim", window=(2, 2), every=every), check=False) as shrunk:
            with recording() as ran:
                for time in (9, 8, 7, 6):
                    wan_out(model, inputs, time)
            layers = shrunk.report().layers
        cost[every] = [
            sum(met(one.call) for one in ran if one.call.site.kind == kind)
            / sum(x.dense_flops for x in layers if x.site.kind == kind)
            for kind in ("self", "cross")
        ]
    share = 9 / 24  # 3 x 3 of 4 x 6 places
    yield claim(
        "Every query has exactly",
        "grids whose windows have the trained size everywhere",
        sum(sizes),
    ).equals(3, "all three, edges too")
    yield claim("H,W equal to the window", "the call is left alone", same).equals(
        True, "dense attention"
    )
    yield claim("with cache_steps=1", "difference of the override", override).within(
        1e-5, "the model", because=FLOAT32
    )
    for every, (a, b) in cost.items():
        yield claim(
            "Every query has exactly", f"self-attention of dense, branch at every {every}th step", a
        ).within(1e-9, "1/k and the window", value=1 / every + share, because=FLOAT64)
        yield claim(
            "Every query has exactly",
            f"cross-attention of dense, branch at every {every}th step",
            b,
        ).within(1e-9, "1/k", value=1 / every, because=FLOAT64)
    yield claim("Every query has exactly", "difference of the scale of scores", factor).within(
        1e-5, "sqrt(log 2L / log L)", because=FLOAT32
    )
