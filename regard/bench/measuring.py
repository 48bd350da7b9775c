"""Measure seconds, bytes and growth, for benchmarks and checks."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Keep the size in bytes of the largest tensor that any operation returns.

    A count, the same on every machine; memory inside of a kernel is not included.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the base has no types
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and record the size of its outputs."""
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.numel() * one.element_size())
        return made


def threads_each(workers: int) -> int:
    """Return the threads of each worker: its share of the cores, at most OMP_NUM_THREADS.

    Oversubscribed threads wait for one another, and are slower than fewer.
    """
    share = max(1, (os.cpu_count() or 1) // workers)
    said = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(share, int(said))) if said.isdigit() else share


def seconds(
    call: Callable[[], object], times: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the wall time of one call, with the device synchronized before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    for _ in range(times):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / times


def compared(
    title: str,
    calls: dict[str, Callable[[], object]],
    rounds: int = 5,
    times: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Time each call once per round, after a warm-up round; the first call is the baseline.

    Returns a row per call: median milliseconds, and how many times faster it is than the first
    (median, least and most over rounds; ratios are taken within a round, so that a machine that
    slows down affects both).

    >>> [row["call"] for row in compared("sums", {"a": lambda: sum(range(9))}, rounds=1)]
    ['a']
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            took = seconds(call, times, clock)
            if turn:
                taken[name].append(took)
    base = next(iter(calls))
    rows = []
    for name, many in taken.items():
        ratios = [a / b for a, b in zip(taken[base], many, strict=True)]
        rows.append(
            {
                "case": title,
                "call": name,
                "median_ms": round(1e3 * statistics.median(many), 4),
                "times_faster": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            }
        )
    return rows


def slope(lengths: Sequence[float], values: Sequence[float]) -> float:
    """Return least-squares slope of log value against log length: the exponent of growth.

    >>> slope([1, 2, 4], [3.0, 12.0, 48.0])
    2.0
    """
    x = [math.log(n) for n in lengths]
    y = [math.log(max(v, 1e-9)) for v in values]
    middle, height = statistics.mean(x), statistics.mean(y)
    over = sum((a - middle) ** 2 for a in x)
    rise = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return round(rise / over, 9) if over else 0.0


def machine() -> dict[str, Any]:
    """Describe the machine, without naming the host."""
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
