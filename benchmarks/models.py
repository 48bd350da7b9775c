"""Time attached models beside the same models alone.

    python benchmarks/models.py               # all
    python benchmarks/models.py --save NAME   # also writes benchmarks/results/NAME.json

A Llama-shaped model (8 layers, d 512, 8 heads, 4 key heads), random weights, float32, no gradients.
The machine may be shared, so: one thread, time of this process rather than of the wall, and each
round times all variants in turn, so that a ratio is taken within a round. What is claimed is the
median of these ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import ROUNDS, no_claim, save
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from regard.models import Null, Stage, attach

LAYERS, WIDTH, HEADS, KV_HEADS = 8, 512, 8, 4


def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=8192,
    )
    return LlamaForCausalLM(config).eval()


class ByHand(nn.Module):
    """The attention of a notebook, to be reached by the functional hook."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (y.view(b, n, HEADS, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, n, d))


class Look(Stage):
    """Wants what `regard.survey` gives when nothing is said."""

    want = ("entropy", "received", "tiles")

    def see(self, call: Any, result: Any) -> None:
        self.last = result.survey.entropy


def measure(
    title: str,
    model: Any,
    call: Callable[[], object],
    variants: dict[str, list[Stage] | None],
    rounds: int,
    times: int,
) -> list[dict[str, Any]]:
    """Rows of process time, and how many times faster than the plain model, round by round."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for turn in range(rounds + 1):
            # Every other round goes backwards, so that no variant always follows the same one.
            order = list(variants) if turn % 2 else list(reversed(variants))
            for name in order:
                stages = variants[name]
                with ExitStack() as stack:
                    if stages is not None:
                        stack.enter_context(attach(model, stages, check=False))
                    call()
                    start = time.process_time()
                    for _ in range(times):
                        call()
                    if turn:
                        taken[name].append((time.process_time() - start) / times)
    base = next(iter(variants))
    rows = []
    for name, took in taken.items():
        ratios = [a / b for a, b in zip(taken[base], took, strict=True)]
        extra = [1e6 * (b - a) / LAYERS for a, b in zip(taken[base], took, strict=True)]
        rows.append(
            {
                "case": title,
                "call": name,
                "median_ms": round(1e3 * statistics.median(took), 3),
                "times_faster": round(statistics.median(ratios), 4),
                "least": round(min(ratios), 4),
                "most": round(max(ratios), 4),
                "no_claim": no_claim(min(ratios), max(ratios), rounds),
                "extra_us_a_call": round(statistics.median(extra), 1),
            }
        )
    print(f"\n{title}")
    for row in rows:
        print(
            f"  {row['call']:<24} {row['median_ms']:>9.2f} ms  {row['times_faster']:.3f}x"
            f"  ({row['least']:.3f} to {row['most']:.3f})  {row['extra_us_a_call']:>8.1f} us more"
            + (f"  NO CLAIM: {row['no_claim']}" if row["no_claim"] else ""),
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--long", type=int, default=4096)
    parser.add_argument("--save", metavar="NAME")
    given = parser.parse_args()
    torch.set_num_threads(1)
    alone: dict[str, list[Stage] | None] = {
        "plain": None,
        "plain again": None,  # how far from 1 a ratio of the same thing comes out here
        "no stage": [],
        "a no-op": [Null()],
    }
    model, rows = llama(), []
    for n, times in ((given.n, 1), (1, 40)):
        ids = torch.randint(5, 1000, (1, n))
        title = f"Llama, {LAYERS} layers, d {WIDTH}, n {n:,}"
        rows += measure(title, model, lambda i=ids: model(i), alone, given.rounds, times)
    hand = nn.Sequential(*(ByHand() for _ in range(LAYERS))).eval()
    for n, times in ((given.n, 1), (1, 40)):
        x = torch.randn(1, n, WIDTH)
        title = f"written by hand, {LAYERS} layers, d {WIDTH}, n {n:,}"
        rows += measure(title, hand, lambda y=x: hand(y), alone, given.rounds, times)
    ids = torch.randint(5, 1000, (1, given.long))
    looked: dict[str, list[Stage] | None] = {"plain": None, "entropy, received, tiles": [Look()]}
    title = f"Llama, a survey at every layer, n {given.long:,}"
    rows += measure(title, model, lambda: model(ids), looked, ROUNDS, 1)
    if given.save:
        save(given.save, rows, rounds=given.rounds, clock="process time, one thread")


if __name__ == "__main__":
    main()
