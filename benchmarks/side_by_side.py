"""Time calls side by side in one process: medians, and ratios taken round by round.

A machine that slows down slows every call of a round alike, so ratios hold where times drift. Where
the rounds are too few or disagree too much, the table says that nothing can be claimed, and why.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regard.bench.measuring import compared, machine, seconds

__all__ = ["CLOCKS", "ROUNDS", "compare", "machine", "no_claim", "save", "seconds", "show"]

RESULTS = Path(__file__).parent / "results"
# Wall time, or CPU time of the thread, which other work on the machine touches less.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
# Fewer rounds than these, or a largest ratio that is so many times the least, carry no claim.
ROUNDS, WIDEST = 5, 1.5


def no_claim(least: float, most: float, rounds: int = ROUNDS) -> str:
    """Say why ratios from `least` to `most` over so many rounds claim nothing; "" where they do.

    >>> no_claim(1.9, 2.2), no_claim(0.9, 1.1), no_claim(1.0, 1.0)
    ('', 'rounds disagree which is faster', '')
    >>> no_claim(2.0, 4.0), no_claim(1.9, 2.2, 3)
    ('rounds differ 2.0 times', '3 rounds are fewer than 5')
    """
    if rounds < ROUNDS:
        return f"{rounds} rounds are fewer than {ROUNDS}"
    if most > WIDEST * least:
        return f"rounds differ {most / max(least, 1e-9):.1f} times"
    if least < 1 < most:
        return "rounds disagree which is faster"
    return ""


def compare(
    title: str,
    calls: dict[str, Callable[[], object]],
    rounds: int = 5,
    times: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Time each call, and print the rows as a table."""
    rows = compared(title, calls, rounds, times, clock)
    for row in rows:
        row["rounds"] = rounds
        row["no_claim"] = no_claim(row["least"], row["most"], rounds)
    show(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    print(f"\n{rows[0]['case']}")
    for row in rows:
        print(
            f"  {row['call']:<44} {row['median_ms']:>10.3f} ms  {row['times_faster']:>7.2f}x"
            f"  ({row['least']:.2f} to {row['most']:.2f})"
            + (f"  NO CLAIM: {row['no_claim']}" if row.get("no_claim") else ""),
            flush=True,
        )


def save(name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write rows with machine, how busy it is, and settings to benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    busy = {"load": round(os.getloadavg()[1], 1)} if hasattr(os, "getloadavg") else {}
    said = {"machine": machine() | busy, "settings": settings, "rows": rows}
    path.write_text(json.dumps(said, indent=1) + "\n")
    print(f"\nwritten: {path}")
