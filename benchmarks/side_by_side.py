"""Time calls side by side in one process: medians, and ratios taken round by round.

A machine that slows down slows every call of a round alike, so ratios hold where times drift.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regard.bench.measuring import compared, machine, seconds

__all__ = ["compare", "machine", "save", "seconds", "show"]

RESULTS = Path(__file__).parent / "results"


def compare(
    title: str,
    calls: dict[str, Callable[[], object]],
    rounds: int = 5,
    times: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Time each call, and print the rows as a table."""
    rows = compared(title, calls, rounds, times, clock)
    show(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    print(f"\n{rows[0]['case']}")
    for row in rows:
        print(
            f"  {row['call']:<44} {row['median_ms']:>10.3f} ms  {row['times_faster']:>7.2f}x"
            f"  ({row['least']:.2f} to {row['most']:.2f})",
            flush=True,
        )


def save(name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write rows with machine and settings to benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    said = {"machine": machine(), "settings": settings, "rows": rows}
    path.write_text(json.dumps(said, indent=1) + "\n")
    print(f"\nwritten: {path}")
