"""Loss curves over four CPU processes beside one process: packed documents, a sliding window.

    python benchmarks/spread_training.py --save spread-training

A tiny Mistral, AdamW, 50 steps: over context parallel alone, and with FSDP2 on another dimension of
the mesh. Tests train for 6 steps, nightly for 50. torch's own context parallel is not beside it:
its flex attention has no backward on CPUs (see spread_beside_torch.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from regard.schemes.local_processes import results

WORLD = 4
WORKER = Path(__file__).parents[1] / "tests" / "schemes" / "spread_models.py"


def main() -> None:
    from side_by_side import save  # the ranks import this file from elsewhere

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    said = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(case: str, call: str, found: list[list[list[float]]]) -> None:
        """Add a row; `found` holds, by rank, the curve over ranks and that of one process."""
        off = max(abs(a - b) for many, one in found for a, b in zip(many, one, strict=True))
        rows.append({"case": case, "call": call, "off_by": off,
                     "loss": [round(x, 5) for x in found[0][0]]})  # fmt: skip
        print(case, call, f"off by {off:.1e}, from {found[0][0][0]:.3f} to {found[0][0][-1]:.3f}")
        if said.save:
            save(said.save, rows, steps=said.steps, processes=WORLD, layers=2)

    made = results(WORLD, f"{WORKER}:curve", "ring", said.steps, "window", timeout=1500.0)
    add("40 tokens", "regard, ring", made)
    made = results(WORLD, f"{WORKER}:sharded_training", "ring", said.steps, timeout=1500.0)
    add("2 x 40 tokens, FSDP2 over both dimensions of 2 x 2", "regard, ring", made)


if __name__ == "__main__":
    main()
