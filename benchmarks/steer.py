"""What a control costs on a CPU at 2,048 tokens, beside the unsteered model, in one run.

    python benchmarks/steer.py

The model that ships, one forward of a prompt on one thread. Each run of a control stands between
two of the unsteered model, and what is told is its CPU time over the mean of theirs: the median of
these ratios, and the quarters below and above. Where the limit of the kind of edit (scores and keys
1.15 times, weights 2 times) lies above, inside or below these is told as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from side_by_side import save

import regard
from regard import controls as c
from regard.models.attach import attach
from regard.models.loading import load
from regard.models.stage import Null

WORDS = c.TokenPositions(range(20, 40))
# Each edit, and the most that it may cost.
CASES: dict[str, tuple[Any, float]] = {
    "AddBias (scores)": (c.AddBias(WORDS, 2.0), 1.15),
    "Forbid (scores)": (c.Forbid(WORDS), 1.15),
    "ExtraKeys (keys)": (c.ExtraKeys(c.GivenKeys(*2 * (torch.zeros(1, 4, 16, 24),))), 1.15),
    "ScaleTensor (output)": (c.ScaleTensor("out", 1.5), 1.15),
    "MoveMass (weights)": (c.MoveMass(WORDS, None, 0.5), 2.0),
    "ShareToPower (weights)": (c.ShareToPower(WORDS, 0.5), 2.0),
}  # fmt: skip


def timed(run: Any) -> float:
    """CPU seconds of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def row(name: str, limit: float, ratios: list[float], seconds: list[float]) -> dict[str, Any]:
    """What is told of one case."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    verdict = "held" if high <= limit else "not held" if low > limit else "not told apart"
    return {
        "call": name, "median_ms": round(1e3 * statistics.median(seconds), 1),
        "times_as_long": round(middle, 3), "quarter_below": round(low, 3),
        "quarter_above": round(high, 3), "limit": limit, "verdict": verdict, "pairs": len(ratios),
    }  # fmt: skip


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--measure", default="some", help="some, all or none: the receipt")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load()
    model = model.float()
    ids = torch.randint(5, 2000, (1, asked.tokens), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        model(ids, logits_to_keep=1, use_cache=False)

    def steered(name: str) -> float:
        if name not in CASES:
            with attach(model, Null(), check=False):
                return timed(run)
        with regard.steer(model, CASES[name][0], check=False, measure=asked.measure):
            return timed(run)

    names = ["attached, no control", *CASES]
    for name in names:  # planned, and in the caches
        steered(name)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(asked.rounds):
        before = timed(run)
        for name in names:
            own = steered(name)
            after = timed(run)
            ratios[name].append(2 * own / (before + after))
            seconds[name].append(own)
            before = after
    rows = [row(x, CASES.get(x, (0, 1.15))[1], ratios[x], seconds[x]) for x in names]
    for one in rows:
        print(
            f"{one['call']:26} {one['median_ms']:8.1f} ms  {one['times_as_long']:5.2f}x "
            f"({one['quarter_below']:.2f} to {one['quarter_above']:.2f}), limit {one['limit']}: "
            f"{one['verdict']}"
        )
    save("steer-cpu", rows, tokens=asked.tokens, rounds=asked.rounds, receipt=asked.measure,
         threads=1, clock="CPU seconds")  # fmt: skip


if __name__ == "__main__":
    main()
