"""What a control costs on a CPU at 2,048 tokens, beside the unsteered model, in one run.

    python benchmarks/steer.py

The model that ships, one forward of a prompt; runs take turns, and medians are told.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import regard
from regard import controls as c
from regard.models.attach import attach
from regard.models.loading import load
from regard.models.stage import Null

WORDS = c.TokenPositions(range(20, 40))
CASES: dict[str, Any] = {
    "AddBias (scores)": c.AddBias(WORDS, 2.0),
    "Forbid (scores)": c.Forbid(WORDS),
    "ExtraKeys (keys)": c.ExtraKeys(c.GivenKeys(*2 * (torch.zeros(1, 4, 16, 24),))),
    "ScaleTensor (output)": c.ScaleTensor("out", 1.5),
    "MoveMass (weights)": c.MoveMass(WORDS, None, 0.5),
    "ShareToPower (weights)": c.ShareToPower(WORDS, 0.5),
}  # fmt: skip


def timed(run: Any) -> float:
    """Time one run, in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", default="some", help="some, all or none: the receipt")
    asked = parser.parse_args()
    model, _ = load()
    model = model.float()
    ids = torch.randint(5, 2000, (1, asked.tokens), generator=torch.Generator().manual_seed(0))
    found: dict[str, list[float]] = {}

    def run() -> None:
        model(ids, logits_to_keep=1, use_cache=False)

    run()
    for _ in range(asked.rounds):
        found.setdefault("unsteered", []).append(timed(run))
        with attach(model, Null(), check=False):
            found.setdefault("attached, no control", []).append(timed(run))
        for name, edit in CASES.items():
            with regard.steer(model, edit, check=False, measure=asked.measure):
                found.setdefault(name, []).append(timed(run))
    base = statistics.median(found["unsteered"])
    for name, times in found.items():
        middle = statistics.median(times)
        print(f"{name:26} {1e3 * middle:8.1f} ms  {middle / base:5.2f}x")


if __name__ == "__main__":
    main()
