"""Schemes over 1 to 8 GPUs beside one GPU: times, bytes and how far outputs are off.

    torchrun --nproc-per-node 8 benchmarks/spread_gpu.py --save spread-gpu
    torchrun --nproc-per-node 2 benchmarks/spread_gpu.py --device cpu --tokens 2048  # that it runs

Forward and backward of one attention under a causal rule, a window and packed documents, in
bfloat16 (float32 on CPUs). One device computes the whole text with the library's own executor, and
again as each of its ranks would have to: `of_ideal` is its time by the number of ranks, by the time
of the scheme. Times are of the slowest rank.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from side_by_side import no_claim, save, seconds
from torch import Tensor

import regard
from regard.core.rule import Rule
from regard.core.support import Causal, Window, documents_from_lengths
from regard.schemes import Contiguous, Layout, ShardedKeys, ZigZag, peers_of, traffic

CALLS = {"ring": ZigZag, "burst": ZigZag, "gather": ZigZag, "heads": Contiguous}


def rules(tokens: int) -> dict[str, Rule]:
    """The rules that are compared."""
    return {
        "causal": Rule(Causal()),
        "window 4,096": Rule(Causal() & Window(4096)),
        "8 documents": Rule(Causal() & documents_from_lengths([tokens // 8] * 8)),
    }


def slowest(call: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    """Milliseconds of the slowest rank in each round; the first round is not counted."""
    found = []
    for turn in range(rounds + 1):
        dist.barrier()
        took = torch.tensor(1e3 * seconds(call), device=device)
        dist.all_reduce(took, dist.ReduceOp.MAX)
        if turn:
            found.append(float(took))
    return found


def step(
    q: Tensor, k: Any, v: Tensor | None, rule: Rule, leaves: list[Tensor], d_out: Tensor
) -> Callable[[], Tensor]:
    """One forward and backward."""

    def call() -> Tensor:
        out = regard.attend(q, k, v, rule) if v is not None else regard.attend(q, k, rule=rule)
        torch.autograd.grad(out, leaves, d_out)
        return out.detach()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--key-heads", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    said = parser.parse_args()
    on_gpu = said.device == "cuda"
    device = torch.device(said.device, int(os.environ.get("LOCAL_RANK", 0)) if on_gpu else None)
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    peers = peers_of(None)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    torch.manual_seed(0)
    shapes = [said.heads, said.key_heads, said.key_heads, said.heads]
    made = [torch.randn(1, h, said.tokens, said.size) for h in shapes]
    q, k, v, d_out = (x.to(device, dtype) for x in made)
    rows: list[dict[str, Any]] = []
    for title, rule in rules(said.tokens).items():
        whole = [x.detach().requires_grad_(True) for x in (q, k, v)]
        alone = step(whole[0], whole[1], whole[2], rule, whole, d_out)
        truth, base = alone(), slowest(alone, said.rounds, device)
        for scheme, kind in CALLS.items():
            layout: Layout = kind(said.tokens, peers.world)
            own = [layout.take(x, peers.rank, 2).requires_grad_(True) for x in (q, k, v)]
            keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme=scheme)
            grad, want = (layout.take(x, peers.rank, 2) for x in (d_out, truth))
            call = step(own[0], keys, None, rule, own, grad)
            with traffic() as sent:
                off = (call().float() - want.float()).abs().max()
            dist.all_reduce(off, dist.ReduceOp.MAX)
            times = slowest(call, said.rounds, device)
            ratios = [a / peers.world / b for a, b in zip(base, times, strict=True)]
            rows.append({
                "case": f"{title}, {peers.world} ranks, {said.tokens:,} tokens",
                "call": f"{scheme}, {kind.__name__}",
                "median_ms": round(statistics.median(times), 2),
                "one_device_ms": round(statistics.median(base), 2),
                "of_ideal": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3), "most": round(max(ratios), 3),
                "no_claim": no_claim(min(ratios), max(ratios), len(ratios)),
                "sent": sent.sent, "off_by": float(off),
            })  # fmt: skip
            if peers.rank == 0:
                print(rows[-1], flush=True)
    if said.save and peers.rank == 0:
        save(said.save, rows, device=said.device, ranks=peers.world, dtype=str(dtype))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
