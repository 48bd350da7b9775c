"""Time scans beside causal softmax attention, in one process, and how their cost grows.

    python benchmarks/scan.py                # prints two tables
    python benchmarks/scan.py --save         # also writes a file in benchmarks/results/

Every round times each method once, softmax attention first; a ratio is taken within a round, so
that a machine that slows down slows both. Shown are medians, and the least and largest ratio.
Other work on the same cores hurts scans most: they are many short parallel products, and each
waits for its slowest thread. On a busy machine give `--threads 1`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from side_by_side import CLOCKS, no_claim
from torch import Tensor

from regard.run.scanning import scan, scan_momentum

RESULTS = Path(__file__).parent / "results"
SOFTMAX = "softmax attention (F.scaled_dot_product_attention, causal)"
Method = Callable[[], Tensor]


def methods(b: int, h: int, n: int, d: int, dtype: torch.dtype, device: str) -> tuple[dict, list]:
    """Make the inputs, and each method as a call; also the leaves that gradients go to."""
    make = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(device, dtype).requires_grad_()

    def rate(*shape: int) -> Tensor:
        return (-0.1 * torch.rand(*shape, generator=make)).to(device).requires_grad_()

    q, v = leaf(b, h, n, d), leaf(b, h, n, d)
    # Keys of length 1, as the delta rule needs.
    k = F.normalize(leaf(b, h, n, d).detach(), dim=-1).requires_grad_()
    head, head_channel, token, channel = rate(h), rate(h, d), rate(b, h, n), rate(b, h, n, d)
    beta = torch.rand(b, h, n, generator=make).to(device).requires_grad_()
    calls: dict[str, Method] = {
        SOFTMAX: lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "scan": lambda: scan(q, k, v)[0],
        "scan, decay per head": lambda: scan(q, k, v, log_decay=head)[0],
        "scan, decay per head and channel": lambda: scan(q, k, v, log_decay=head_channel)[0],
        "scan, decay per token": lambda: scan(q, k, v, log_decay=token)[0],
        "scan, decay per token and channel": lambda: scan(q, k, v, log_decay=channel)[0],
        "delta rule": lambda: scan(q, k, v, beta=beta)[0],
        "delta rule, decay per token": lambda: scan(q, k, v, beta=beta, log_decay=token)[0],
        "delta rule, decay per token and channel": lambda: scan(
            q, k, v, beta=beta, log_decay=channel
        )[0],
        "momentum per token": lambda: scan_momentum(q, k, v, log_momentum=token)[0],
    }
    return calls, [q, k, v, head, head_channel, token, channel, beta]


def seconds(call: Callable[[], object], device: str, clock: str = "wall") -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = CLOCKS[clock]()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return CLOCKS[clock]() - start


def forward(method: Method) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            method()

    return run


def both_ways(method: Method, leaves: list[Tensor]) -> Callable[[], object]:
    toward = torch.randn_like(leaves[0])

    def run() -> None:
        torch.autograd.grad(method(), leaves, toward, allow_unused=True)

    return run


def compare(
    calls: dict[str, Callable[[], object]], rounds: int, device: str, clock: str = "wall"
) -> list[dict]:
    """Time each call once a round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            took = seconds(call, device, clock)
            if turn:
                times[name].append(took)
    rows = []
    for name, took in times.items():
        ratios = [a / b for a, b in zip(times[SOFTMAX], took, strict=True)]
        rows.append(
            {
                "method": name,
                "median_ms": round(1e3 * statistics.median(took), 2),
                "least_ms": round(1e3 * min(took), 2),
                "times_faster": round(statistics.median(ratios), 2),
                "times_faster_least": round(min(ratios), 2),
                "times_faster_most": round(max(ratios), 2),
                "no_claim": no_claim(min(ratios), max(ratios), rounds),
            }
        )
    return rows


def growth(lengths: list[int], rounds: int, shape: dict, device: str) -> list[dict]:
    """Fit `time = c n^exponent` to the least times over the lengths."""
    least: dict[str, list[float]] = {}
    for n in lengths:
        calls, _ = methods(n=n, device=device, **shape)
        del calls[SOFTMAX]
        for name, method in calls.items():
            run = forward(method)
            run()
            best = min(seconds(run, device) for _ in range(rounds))
            least.setdefault(name, []).append(best)
    x = [math.log(n) for n in lengths]
    rows = []
    for name, took in least.items():
        slope, _ = statistics.linear_regression(x, [math.log(t) for t in took])
        each = [round(1e3 * t, 2) for t in took]
        rows.append({"method": name, "exponent": round(slope, 3), "lengths": lengths, "ms": each})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--length", type=int, default=16_384)
    parser.add_argument("--size", type=int, default=64, help="of keys and values")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest", type=int, default=65_536, help="of the growth table")
    parser.add_argument("--only", default="", help="a word of the methods to time: delta, say")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of one thread")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = {
        "b": given.batch, "h": given.heads, "d": given.size, "dtype": getattr(torch, given.dtype),
    }  # fmt: skip
    calls, leaves = methods(n=given.length, device=given.device, **shape)
    calls = {name: x for name, x in calls.items() if given.only in name or name == SOFTMAX}
    tables = {}
    for title, wrap, rounds in (
        ("forward", forward, given.rounds),
        ("forward and backward", lambda m: both_ways(m, leaves), given.rounds),
    ):
        rows = compare(
            {name: wrap(m) for name, m in calls.items()}, rounds, given.device, given.clock
        )
        tables[title] = rows
        print(f"\n{title}, {given.length} tokens, {rounds} rounds")
        print(f"{'method':64}{'median ms':>11}{'faster':>9}{'(least':>9}{'most)':>9}")
        for row in rows:
            print(
                f"{row['method']:64}{row['median_ms']:11.1f}{row['times_faster']:9.2f}"
                f"{row['times_faster_least']:9.2f}{row['times_faster_most']:9.2f}"
                + (f"  NO CLAIM: {row['no_claim']}" if row["no_claim"] else "")
            )
    lengths = [n for n in (2**i for i in range(11, 24)) if n <= given.longest]
    tables["growth"] = growth(lengths, 3, shape, given.device)
    if lengths:
        print(f"\ngrowth of the forward pass from {lengths[0]} to {lengths[-1]} tokens")
    for row in tables["growth"]:
        print(f"{row['method']:64} n^{row['exponent']:.3f}")
    if given.save:
        RESULTS.mkdir(exist_ok=True)
        path = (
            RESULTS
            / f"scan-{given.device}-{given.threads}-threads{given.only and f'-{given.only}'}.json"
        )
        setting = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "device": torch.cuda.get_device_name() if given.device != "cpu" else "cpu",
            "batch": given.batch, "heads": given.heads, "length": given.length,
            "size": given.size, "dtype": given.dtype, "chunk": 64, "clock": given.clock,
        }  # fmt: skip
        path.write_text(json.dumps({"setting": setting, **tables}, indent=1) + "\n")
        print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
