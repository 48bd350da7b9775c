"""Loss curves over four CPU processes beside one process: packed documents, a sliding window.

    python benchmarks/spread_training.py --save spread-training

A tiny Mistral, AdamW, 50 steps. Over context parallel alone; with FSDP2 on another dimension of
the mesh; and over 512 tokens (it asks for 128 a rank) beside torch's own context parallel for
flex attention, which is given the mask by hand. Tests train for 6 steps, nightly for 50.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regard.schemes import Contiguous, peers_of
from regard.schemes.local_processes import function_of, results
from regard.schemes.spreading import spread

WORLD, TOKENS, WINDOW, CUTS = 4, 512, 64, (200, 57, 255)
WORKER = Path(__file__).parents[1] / "tests" / "schemes" / "spread_models.py"


def of_torch(model: Any) -> Any:
    """Let a model attend by torch's flex context parallel, under the mask that its config asks."""
    from spread_beside_torch import flex_over
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import AttentionInterface

    mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("cp",))
    ids = torch.repeat_interleave(torch.arange(len(CUTS)), torch.tensor(CUTS))

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < WINDOW) & (ids[i] == ids[j])

    flex, mask = flex_over(mesh, visible, TOKENS)

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, _: Any, **more: Any) -> Any:
        return flex(q, k, v, block_mask=mask, scale=more["scaling"]).transpose(1, 2), None

    AttentionInterface.register("torch_context_parallel", attention)
    model.set_attn_implementation("torch_context_parallel")
    return model


def beside_torch(steps: int) -> dict[str, list[float]]:
    """Train one model three times in step: in one process, over ours, and over torch's."""
    peers, cut = peers_of(None), Contiguous(TOKENS, WORLD)
    tiny = function_of(f"{WORKER}:tiny")
    alone = tiny(sliding_window=WINDOW, max_position_embeddings=TOKENS)
    models = {
        "one process": alone, "regard": copy.deepcopy(alone),
        "torch, flex": of_torch(copy.deepcopy(alone)),
    }  # fmt: skip
    steppers = {name: torch.optim.AdamW(x.parameters(), lr=3e-3) for name, x in models.items()}
    curves: dict[str, list[float]] = {name: [] for name in models}
    positions = torch.cat([torch.arange(c) for c in CUTS])[None]
    draw = torch.Generator().manual_seed(3)
    with spread(models["regard"], peers, "ring") as spreading:
        for _ in range(steps):
            ids = torch.randint(1, 50, (1, TOKENS // 2), generator=draw).repeat(1, 2)
            whole = {"input_ids": ids, "position_ids": positions, "use_cache": False}
            for stepper in steppers.values():
                stepper.zero_grad()

            loss = alone(**whole, labels=ids).loss
            loss.backward()
            curves["one process"].append(float(loss.detach()))

            loss = models["regard"](**whole, labels=ids).loss
            loss.backward()
            spreading.sum_gradients()
            curves["regard"].append(spreading.loss(loss))

            # What a caller of torch's does by hand: cut, shift labels, weigh, add gradients up.
            shifted = torch.nn.functional.pad(ids, (0, 1), value=-100)[:, 1:]
            own, at, labels = (cut.take(x, peers.rank, 1) for x in (ids, positions, shifted))
            loss = models["torch, flex"](
                input_ids=own, position_ids=at, labels=labels, shift_labels=labels,
                num_items_in_batch=torch.tensor(TOKENS - 1), use_cache=False,
            ).loss  # fmt: skip
            loss.backward()
            total = loss.detach().clone()
            for x in (total, *(y.grad for y in models["torch, flex"].parameters())):
                dist.all_reduce(x)
            curves["torch, flex"].append(float(total))
            for stepper in steppers.values():
                stepper.step()
    return curves


def main() -> None:
    from side_by_side import save  # the ranks import this file from elsewhere

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    said = parser.parse_args()
    rows = []

    def add(case: str, call: str, found: list[list[list[float]]]) -> None:
        """Add a row; `found` holds, by rank, the curve over ranks and that of one process."""
        off = max(abs(a - b) for many, one in found for a, b in zip(many, one, strict=True))
        rows.append({"case": case, "call": call, "off_by": off,
                     "loss": [round(x, 5) for x in found[0][0]]})  # fmt: skip
        print(case, call, f"off by {off:.1e}, {found[0][0][0]:.3f} to {found[0][0][-1]:.3f}")

    for scheme in ("ring", "gather"):
        made = results(WORLD, f"{WORKER}:curve", scheme, said.steps, "window")
        add("40 tokens", f"regard, {scheme}", made)
    made = results(WORLD, f"{WORKER}:sharded_training", "ring", said.steps)
    add("2 x 40 tokens, FSDP2 over both dimensions of 2 x 2", "regard, ring", made)
    ranks = results(WORLD, f"{__file__}:beside_torch", said.steps)
    for name in ("regard", "torch, flex"):
        add(f"{TOKENS} tokens", name, [[x[name], x["one process"]] for x in ranks])
    if said.save:
        save(said.save, rows, steps=said.steps, processes=WORLD, layers=2)


if __name__ == "__main__":
    main()
