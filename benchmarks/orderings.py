"""Which published orderings appear at small scale, from several seeds.

    python benchmarks/orderings.py --save orderings            # goes on where it was stopped
    python benchmarks/orderings.py --only mqar_zoology --seeds 3

Two sources. The checks of rows that train, run again from other seeds (seed 0 is the evidence that
is committed). And sweeps of `regard bench` for orderings that no check asserts, since they do not
all come out as published: there every score is told, and what holds from seed to seed is read off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from side_by_side import RESULTS, machine

from regard.bench.records import TrainingRun, read_record, record_path
from regard.bench.sweep import one
from regard.papers.trial import measure

CHECKS = (
    "rank_vs_heads", "icl_multihead_regression", "big_bench", "knowledge_conflict_swap",
    "verbatim_recall", "mqar_zoology", "gcog",
)  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """Contenders trained alike on one task: what each `TrainingRun` is told beside its task."""

    row: str
    said: str
    task: str
    steps: int
    contenders: dict[str, dict[str, Any]]

    def run(self, name: str, seed: int) -> TrainingRun:
        """The run of one contender from one seed."""
        return TrainingRun(task=self.task, pattern="cs", seed=seed, steps=self.steps,
                   **self.contenders[name])  # fmt: skip


POSITIONS = {
    "none": {"layer": "mha", "positions": "none"},
    "sinusoidal": {"layer": "mha", "positions": "sinusoidal"},
    "rotary": {"layer": "mha:position=rotary", "positions": "none"},
    "T5": {"layer": "mha:position=t5", "positions": "none"},
    "ALiBi": {"layer": "mha:position=alibi", "positions": "none"},
}
SWEEPS = (
    Sweep(
        "pe_length_generalization",
        "copying: trained on up to 10 words, tested on 10, 15 and 20",
        "copy:length=10", 1000, POSITIONS,
    ),
    Sweep(
        "random_access_parity",
        "parity bit by bit, whole rows right: trained on up to 12 bits, tested on 12 and 24",
        "parity_interleaved", 800, {k: POSITIONS[k] for k in ("none", "rotary", "ALiBi")},
    ),
)  # fmt: skip


def checked(row: str, seed: int) -> dict[str, Any]:
    """What the check of a row measures from a seed (its evidence is kept by `regard papers`)."""
    found = measure(row, [seed])
    numbers = {f"{one.says} ({one.answers[:24]})": one.measured[0] for one in found.claims}
    return {"seed": seed, "held": found.held, "numbers": numbers,
            "cpu_seconds": found.cpu_seconds}  # fmt: skip


def swept(sweep: Sweep, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """What one contender scores on each test, from a seed."""
    run, began = sweep.run(name, seed), time.process_time()
    one(run, folder)
    record = read_record(record_path(folder, run))
    return {"contender": name, "seed": seed, "parameters": record["parameters"],
            "scores": {test: round(x["score"], 4) for test, x in record["tests"].items()},
            "cpu_seconds": round(time.process_time() - began, 1)}  # fmt: skip


def spread(values: list[float]) -> str:
    """Say the mean, the least and the most."""
    return f"{statistics.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def table(found: dict[str, Any]) -> str:
    """Write what was found as Markdown: held of how many, and the scores of the sweeps."""
    lines = ["| row | held in | measured: mean (least to most) |", "|---|---|---|"]
    for row, runs in found["checks"].items():
        numbers = {k: [r["numbers"][k] for r in runs] for k in runs[0]["numbers"]}
        moved = [f"{k}: {spread(v)}" for k, v in numbers.items()
                 if all(isinstance(x, float) for x in v) and len(set(v)) > 1]  # fmt: skip
        held = sum(r["held"] for r in runs)
        lines.append(f"| `{row}` | {held} of {len(runs)} seeds | {'; '.join(moved)} |")
    for sweep in SWEEPS:
        runs = found["sweeps"].get(sweep.row, [])
        if not runs:
            continue
        tests = list(runs[0]["scores"])[1:]
        lines += ["", f"`{sweep.row}`: {sweep.said} ({sweep.steps} steps).", ""]
        lines += [f"| | {' | '.join(tests)} |", "|---" * (1 + len(tests)) + "|"]
        for name in sweep.contenders:
            own = [r["scores"] for r in runs if r["contender"] == name]
            if own:
                cells = [spread([scores[test] for scores in own]) for test in tests]
                lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and write it down after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", default="orderings", help="name of the file in results/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="rows; by default all")
    parser.add_argument("--folder", type=Path, default=Path("out/orderings"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"{args.save}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found = {"machine": machine(), "checks": {}, "sweeps": {}, **found}

    def keep(part: str, row: str, made: dict[str, Any]) -> None:
        found[part].setdefault(row, []).append(made)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(row, json.dumps(made), flush=True)

    for seed in range(args.seeds):
        for sweep in SWEEPS:
            for name in sweep.contenders:
                done = {(r["contender"], r["seed"]) for r in found["sweeps"].get(sweep.row, [])}
                if (name, seed) not in done and (not args.only or sweep.row in args.only):
                    keep("sweeps", sweep.row, swept(sweep, name, seed, args.folder))
        for row in CHECKS:
            done = {r["seed"] for r in found["checks"].get(row, [])}
            if seed not in done and (not args.only or row in args.only):
                keep("checks", row, checked(row, seed))
    print(table(found))


if __name__ == "__main__":
    main()
