"""Time calls side by side in one process: medians, and ratios taken round by round.

A machine that slows down slows every call of a round alike, so ratios hold where times drift.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Wall time of one call, the device drained before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def compare(
    title: str, calls: dict[str, Callable[[], object]], rounds: int = 5, times: int = 1
) -> list[dict[str, Any]]:
    """Time each call once a round (after one that does not count); the first is the measure.

    A row a call: median milliseconds, and how many times faster than the first it is (median,
    least and most over the rounds).
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            took = seconds(call, times)
            if turn:
                taken[name].append(took)
    base = next(iter(calls))
    rows = []
    for name, took in taken.items():
        ratios = [a / b for a, b in zip(taken[base], took, strict=True)]
        rows.append(
            {
                "case": title,
                "call": name,
                "median_ms": round(1e3 * statistics.median(took), 4),
                "times_faster": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            }
        )
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


def machine() -> dict[str, Any]:
    """Say what the numbers were measured on, without naming the host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        model = names[0] if names else model
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else model
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save(name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write rows with machine and settings to benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    said = {"machine": machine(), "settings": settings, "rows": rows}
    path.write_text(json.dumps(said, indent=1) + "\n")
    print(f"\nwritten: {path}")
