"""Attention over images and videos on a CPU, policies against dense, and a UNet with a gate.

    python benchmarks/shrink_vision.py --save shrink-vision      # two minutes

CPU time of one thread, contenders round by round; pairs are those of all, as `report` counts them.
Each policy's own choosing counts, where it chooses at that step. Dense is SDPA.
"""

from __future__ import annotations

import argparse
import time
from math import prod
from typing import Any

import torch
from side_by_side import compare, save
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.core.call import Call
from regard.models.diffusers import branches
from regard.models.forward import Forward
from regard.models.site import Site, Sites
from regard.policies import Budget, policy
from regard.policies.base import Step
from regard.policies.kinds import SelectAndRun
from regard.run.runner import run as run_call
from regard.verbs import shrink

HEADS, SIZE = 4, 64
Contender = tuple[str, dict[str, Any], float, int]
VIDEO: dict[str, Contender] = {
    "grat, surrounding": ("grat", {"group": (1, 8, 8), "radius": 1}, 0.25, 0),
    "grat, criss-cross": ("grat_criss_cross", {"group": (1, 8, 8)}, 0.25, 0),
    "efficient_vdit_tile, 1 frame of reference": ("efficient_vdit_tile", {}, 0.01, 0),
    "freeswim, windows of 8 x 8": ("freeswim", {"window": (8, 8)}, 0.25, 1),
    "adaspa, the first search": ("adaspa", {"searches": (0, 2)}, 0.2, 0),
    "adaspa, a step between": ("adaspa", {"searches": (0, 2)}, 0.2, 1),
    "adaspa, the second search": ("adaspa", {"searches": (0, 2)}, 0.2, 2),
}
IMAGE: dict[str, Contender] = {
    "grat, surrounding": ("grat", {"radius": 1}, 0.25, 0),
    "grat, criss-cross": ("grat_criss_cross", {}, 0.25, 0),
}


def layer(grid: tuple[int, ...], text: int, contenders: dict[str, Contender], rounds: int) -> Any:
    """One layer's joint attention over a grid and text."""
    torch.manual_seed(0)
    site = Site(0, "joint" if text else "self", "attn", HEADS, HEADS, SIZE, modality="image-text")
    n = prod(grid) + text
    q, k, v = torch.randn(3, 1, HEADS, n, SIZE)
    calls: dict[str, Any] = {"SDPA": lambda: sdpa(q, k, v)}
    shares = {}
    for name, (key, settings, keep, at) in contenders.items():
        made = policy(key, **settings)
        made.begin(torch.nn.Linear(1, 1), Sites([site]), Budget.of(keep))

        def run(made: Any = made, at: int = at, name: str = name) -> Tensor:
            call = Call.of(q, k, v, site=site, forward=Forward(at, grid=grid))
            step = Step(call, n, torch.tensor([n]))
            chosen = made.select(step)
            out = made.run(chosen) if isinstance(made, SelectAndRun) else None
            if out is not None:
                return out
            ran = run_call(chosen)
            shares[name] = round(ran.cost.pairs / HEADS / n**2, 4)
            return ran.out

        if key == "adaspa" and at:  # what an earlier step found
            run(made, 0)
        calls[name] = run
    words = f" and {text} words" if text else ""
    title = f"{' x '.join(map(str, grid))} tokens{words}, {HEADS} heads of {SIZE}"
    rows = compare(title, calls, rounds, clock=time.process_time)
    return [{**row, "pairs": shares.get(row["call"], 1.0)} for row in rows]


def gated(steps: int, gate: int, rounds: int) -> Any:
    """A whole denoising of a random UNet, both branches in one batch."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=32, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=64,
        attention_head_dim=8,
    ).eval()  # fmt: skip
    start, words = torch.randn(1, 4, 32, 32), torch.randn(2, 77, 64)

    def sample() -> Tensor:
        x = start
        for step in range(steps):
            out = model(torch.cat([x, x]), torch.tensor(900 - 10 * step), words, return_dict=False)
            without, with_words = out[0].chunk(2)
            x = x - 0.1 * (without + 4.0 * (with_words - without))
        return x

    def shrunk() -> Tensor:
        made = policy("tgate", gate=gate)
        with branches("unconditional", "conditional"), shrink(model, made, check=False):
            return sample()

    title = f"{steps} steps of a UNet of 32 x 32, guided"
    calls = {"whole": sample, f"tgate, from step {gate}": shrunk}
    return compare(title, calls, rounds, clock=time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = layer((8, 24, 24), 0, VIDEO, arguments.rounds)
        rows += layer((64, 64), 128, IMAGE, arguments.rounds)
        rows += gated(10, 4, arguments.rounds)
    if arguments.save:
        save(arguments.save, rows, rounds=arguments.rounds, clock="CPU time of one thread")


if __name__ == "__main__":
    main()
