"""Rings over CPU processes, ours and yunchang's, in one run: causal, a window, packed documents.

    pip install yunchang --no-deps --target peers && PYTHONPATH=peers:. python \
        benchmarks/spread.py --save spread-cpu

Forward and backward of one attention, contiguous pieces for both, and zigzag for ours: yunchang's
ring for torch kernels has none. Its kernels ask for a GPU, so the same operators for CPUs stand in
their place; its backward returns five gradients for six inputs (0.6.4), which autograd refuses, so
the sixth is put in. It knows no windows and no documents: it scores the causal triangle, and what
it gives is not what the rule asks: `pairs_left` is what the rule leaves of the pairs of its slowest
rank, on the slowest of ours. A round runs all calls one after the other; times are of the slowest
rank, wall and CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import regard
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Window, documents_from_lengths
from regard.run.runner import run
from regard.schemes import Contiguous, Layout, ShardedKeys, ZigZag, peers_of
from regard.schemes.local_processes import results
from regard.schemes.messages import Waiting

HEADS, SIZE = 8, 64
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def rules(tokens: int) -> dict[str, Rule]:
    """The rules that are compared."""
    lengths = [tokens // 8] * 8
    return {
        "causal": Rule(Causal()),
        "window 512": Rule(Causal() & Window(512)),
        "8 documents": Rule(Causal() & documents_from_lengths(lengths)),
    }


def yunchang_ring() -> Callable[..., Tensor]:
    """Its ring, over the CPU's operators: q, k, v [b, n, h, d]."""
    from yunchang.ring import ring_pytorch_attn as home

    def forward(q: Any, k: Any, v: Any, softmax_scale: float, causal: bool, **_: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = FLASH(q, k, v, 0.0, causal, attn_mask=None, scale=softmax_scale)
        return out.transpose(1, 2), lse

    def backward(
        d_out: Any, q: Any, k: Any, v: Any, out: Any, softmax_lse: Any, softmax_scale: float,
        causal: bool, **_: Any,
    ) -> Any:  # fmt: skip
        d_out, q, k, v, out = (x.transpose(1, 2) for x in (d_out, q, k, v, out))
        lse = softmax_lse.transpose(1, 2).contiguous()
        grads = FLASH_BACK(
            d_out.contiguous(), q, k, v, out, lse, 0.0, causal, attn_mask=None, scale=softmax_scale
        )
        return tuple(x.transpose(1, 2).contiguous() for x in grads)

    plain = home.RingAttentionFunc.backward

    def with_all(ctx: Any, *grads: Any) -> Any:
        return (None, *plain(ctx, *grads)[:3], None, None)

    home.RingAttentionFunc.backward = staticmethod(with_all)
    home.pytorch_attn_forward, home.pytorch_attn_backward = forward, backward
    found: Callable[..., Tensor] = home.ring_pytorch_attn_func
    return found


def pairs_left(rule: Rule, tokens: int, world: int) -> dict[str, float]:
    """The pairs of the rule on the rank with the most, by layout, as a share of theirs."""
    flat, zigzag = Contiguous(tokens, world), ZigZag(tokens, world)
    allowed = torch.zeros(tokens, dtype=torch.long)
    some = torch.arange(tokens)
    b = h = torch.zeros(1, 1, dtype=torch.long)
    for rows in some.split(512):
        allowed[rows] = rule.support.allows(b, h, rows[:, None], some[None]).sum(1)
    theirs = int((flat.positions(world - 1) + 1).sum())
    most = {
        name: max(int(allowed[x.positions(r)].sum()) for r in range(world)) / theirs
        for name, x in (("contiguous", flat), ("zigzag", zigzag))
    }
    return {**most, "heads": int(allowed.sum()) / world / theirs}


def one_rank(tokens: int, rounds: int) -> dict[str, Any]:
    """Times of this rank by rule and call, how far outputs are off, and how long it waited."""
    peers, ring = peers_of(None), yunchang_ring()
    torch.manual_seed(0)
    q, k, v, d_out = torch.randn(4, 1, HEADS, tokens, SIZE).unbind(0)
    waited = [0.0]
    plain_wait = Waiting.wait

    def wait(self: Waiting) -> None:
        began = time.perf_counter()
        plain_wait(self)
        waited[0] += time.perf_counter() - began

    # Put in for good: a rank of this benchmark does nothing else.
    Waiting.wait = wait  # type: ignore[method-assign]  # a timed method replaces it
    found: dict[str, Any] = {}
    for title, rule in rules(tokens).items():
        whole = run(Call.of(q, k, v, rule)).out

        def ours(
            layout: Layout, scheme: str, rule: Rule = rule, whole: Tensor = whole
        ) -> Callable[[], float]:
            own = [layout.take(x, peers.rank, 2).requires_grad_(True) for x in (q, k, v)]
            grad, want = (layout.take(x, peers.rank, 2) for x in (d_out, whole))

            def ring_of_ours() -> float:
                keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme=scheme)
                out = regard.attend(own[0], keys, rule=rule)
                torch.autograd.grad(out, own, grad)
                return float((out - want).abs().max())

            return ring_of_ours

        def theirs(rule: Rule = rule, whole: Tensor = whole) -> Callable[[], float]:
            cut = Contiguous(tokens, peers.world)
            own = [
                cut.take(x, peers.rank, 2).transpose(1, 2).contiguous().requires_grad_(True)
                for x in (q, k, v)
            ]
            grad, want = (cut.take(x, peers.rank, 2).transpose(1, 2) for x in (d_out, whole))

            def ring_of_theirs() -> float:
                out = ring(*own, causal=True, group=None)
                torch.autograd.grad(out, own, grad)
                return float((out - want).abs().max())

            return ring_of_theirs

        flat, zigzag = Contiguous(tokens, peers.world), ZigZag(tokens, peers.world)
        calls = {
            "yunchang, ring, contiguous": theirs(),
            "regard, ring, contiguous": ours(flat, "ring"),
            "regard, ring, zigzag": ours(zigzag, "ring"),
            "regard, gather, zigzag": ours(zigzag, "gather"),
            "regard, heads": ours(flat, "heads"),
        }
        times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in calls}
        off = {}
        for turn in range(rounds + 1):
            for name, call in calls.items():
                dist.barrier()
                waited[0], began, busy = 0.0, time.perf_counter(), time.process_time()
                off[name] = call()
                if turn:
                    times[name].append((
                        time.perf_counter() - began, time.process_time() - busy, waited[0],
                    ))  # fmt: skip
        found[title] = {name: {"times": times[name], "off": off[name]} for name in calls}
    return found


def main() -> None:
    from side_by_side import no_claim, save  # the ranks import this file from elsewhere

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    said = parser.parse_args()
    rows = []
    for world in said.worlds:
        ranks = results(world, f"{__file__}:one_rank", said.tokens, said.rounds, timeout=900.0)
        for title in rules(said.tokens):
            slowest = {
                name: [
                    [max(rank[title][name]["times"][turn][part] for rank in ranks)
                     for turn in range(said.rounds)]
                    for part in range(3)
                ]
                for name in ranks[0][title]
            }  # fmt: skip
            base = next(iter(slowest.values()))
            left = pairs_left(rules(said.tokens)[title], said.tokens, world)
            for name, (wall, busy, waits) in slowest.items():
                ratios = [a / b for a, b in zip(base[0], wall, strict=True)]
                rows.append({
                    "case": f"{title}, {world} processes, {said.tokens:,} tokens", "call": name,
                    "pairs_left": 1.0 if name.startswith("yunchang") else round(
                        left[name.rsplit(None, 1)[-1]], 3
                    ),
                    "median_ms": round(1e3 * statistics.median(wall), 2),
                    "times_faster": round(statistics.median(ratios), 3),
                    "least": round(min(ratios), 3), "most": round(max(ratios), 3),
                    "no_claim": no_claim(min(ratios), max(ratios), len(ratios)),
                    "cpu_ms": round(1e3 * statistics.median(busy), 2),
                    "cpu_times_less": round(
                        statistics.median(a / b for a, b in zip(base[1], busy, strict=True)), 3
                    ),
                    # Its messages are not ours, and are not timed.
                    "waited": None if name.startswith("yunchang") else round(
                        statistics.median(a / b for a, b in zip(waits, wall, strict=True)), 3
                    ),
                    "off_by": max(rank[title][name]["off"] for rank in ranks),
                })  # fmt: skip
                print(rows[-1], flush=True)
    if said.save:
        save(said.save, rows, heads=HEADS, size=SIZE, rounds=said.rounds, yunchang="0.6.4")


if __name__ == "__main__":
    main()
