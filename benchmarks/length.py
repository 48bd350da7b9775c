"""What planning costs at length: a window of 64 over up to 10,000,000 keys.

    python benchmarks/length.py

CPU time of `plan` and of the tile map, best of 5 runs of slightly different lengths (nothing is
kept from one to the next), in a fresh process for each rule and length; the rise of its peak
resident size (Linux); and the exponent, the slope of log time over log length from 1,000,000 on.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

LENGTHS = (100_000, 1_000_000, 3_000_000, 10_000_000)
RULES = ("Causal() & Window(64)", "Causal() & (Window(64) | Sinks(4))", "Causal() & Blocks(64)")
OUT = Path(__file__).parent / "results" / "length.json"
CHILD = """
import json, sys, time, torch, regard
from regard import Blocks, Causal, Sinks, Window

def kib(name):  # VmRSS: resident now; VmHWM: the most so far
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

torch.set_num_threads(1)
n, rule = int(sys.argv[1]), eval(sys.argv[2])
one = torch.zeros(1, 1, 1, 1)
few = one.expand(1, 8, 100_000, 64)
regard.plan(few, few, few, rule)
few_tiles = rule.tiles(99_999, 99_999)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # forget the peak
before, plans, maps = kib("VmRSS"), [], []
for k in range(5):
    q = one.expand(1, 8, n - k, 64)
    start = time.process_time()
    plan = regard.plan(q, q, q, rule)
    plans.append(time.process_time() - start)
    if k == 0:
        rise = kib("VmHWM") - before
    start = time.process_time()
    rule.tiles(n - k, n - k).density
    maps.append(time.process_time() - start)
print(json.dumps({
    "executor": plan.executor, "plan_ms": 1e3 * min(plans), "tiles_ms": 1e3 * min(maps),
    "plan_ms_spread": [1e3 * min(plans), 1e3 * max(plans)], "plan_rise_mb": rise / 1024,
}))
"""


def main() -> None:
    """Measure every rule at every length, print a table and keep it."""
    found: dict[str, dict[str, dict[str, object]]] = {}
    exponents = {}
    for rule in RULES:
        found[rule] = {}
        for n in LENGTHS:
            done = subprocess.run(
                [sys.executable, "-c", CHILD, str(n), rule],
                check=True,
                capture_output=True,
                text=True,
            )
            one = found[rule][str(n)] = json.loads(done.stdout)
            print(
                f"{rule:36} {n:>12,} {one['executor']:8} plan {one['plan_ms']:8.2f} ms, "
                f"tiles {one['tiles_ms']:8.2f} ms, rise {one['plan_rise_mb']:6.1f} MB"
            )
        long = [n for n in LENGTHS if n >= 1_000_000]
        # Values are typed object.
        exponents[rule] = _slope(long, [float(found[rule][str(n)]["plan_ms"]) for n in long])  # type: ignore[arg-type]
        print(f"{rule:36} exponent {exponents[rule]:.2f}")
    OUT.write_text(json.dumps({"rules": found, "exponents": exponents}, indent=2) + "\n")


def _slope(x: list[int], y: list[float]) -> float:
    """Fit the exponent of y over x, by least squares on logarithms."""
    a, b = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    return top / sum((p - mean_a) ** 2 for p in a)


if __name__ == "__main__":
    main()
