"""Time the GPU paths beside their peers: plain, window, survey, decode and scan.

    python benchmarks/gpu.py --save NAME   # writes benchmarks/results/NAME.json

bf16, 32 heads of 128, batch 1 unless said. Results are checked against the peer before they are
timed. Survey and decode are also replayed from a CUDA graph between events: the device's own time,
without the host between launches. Nothing here has been measured yet: without a CUDA device it
says so and stops.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import compare, save
from torch.nn.attention import SDPBackend, sdpa_kernel

import regard
from regard.core.key_forms import Paged
from regard.core.rule import Rule
from regard.core.support import Causal, Sinks, Window

H, G, D = 32, 8, 128


def make(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def backend(which: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    def run() -> torch.Tensor:
        with sdpa_kernel(which):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return run


def on_device(rows: list[dict], calls: dict[str, Any], rounds: int) -> None:
    """Add to each row the median milliseconds of its call on the device alone."""
    for row in rows:
        call = calls[row["call"]]
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):  # whatever is compiled or chosen once, before capture
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        taken = []
        for _ in range(rounds):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            start.record()
            for _ in range(10):
                graph.replay()
            stop.record()
            stop.synchronize()
            taken.append(start.elapsed_time(stop) / 10)
        row["device_ms"] = round(statistics.median(taken), 4)
        row["device_times_first"] = round(row["device_ms"] / rows[0]["device_ms"], 3)
        print(
            f"  {row['call']:<44} {row['device_ms']:>10.3f} ms on the device, "
            f"{row['device_times_first']:.2f}x the first"
        )


def plain(n: int, rounds: int) -> list[dict]:
    q, k, v = (make(1, H, n, D) for _ in range(3))
    rule = regard.Rule(Causal())
    calls = {
        "SDPA cuDNN": backend(SDPBackend.CUDNN_ATTENTION, q, k, v),
        "SDPA Flash": backend(SDPBackend.FLASH_ATTENTION, q, k, v),
        "regard.attend": lambda: regard.attend(q, k, v, rule),
    }
    return compare(f"plain causal, n {n:,}", calls, rounds)


def structured(n: int, rounds: int) -> list[dict]:
    q, k, v = (make(1, H, n, D) for _ in range(3))
    rows = []
    for support in (Causal() & Window(1024), Causal() & (Window(1024) | Sinks(4))):
        rule = regard.Rule(support)
        want = regard.attend(q, k, v, rule, executor="chunked")
        calls: dict[str, Any] = {}
        for name in ("flex", "folded"):
            got = regard.attend(q, k, v, rule, executor=name)
            torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
            calls[name] = lambda name=name, rule=rule: regard.attend(q, k, v, rule, executor=name)
        calls["as planned"] = lambda rule=rule: regard.attend(q, k, v, rule)
        rows += compare(f"{support}, n {n:,}", calls, rounds)
    return rows


def survey(n: int, rounds: int) -> list[dict]:
    q, k, v = (make(1, H, n, D) for _ in range(3))
    small = q[:, :2, :1024], k[:, :2, :1024], None, Causal()
    kernel = regard.survey(*small, executor="triton")
    rows = regard.survey(*small, executor="streamed")
    for name, x in rows.found.items():
        torch.testing.assert_close(kernel.found[name], x, atol=2e-2, rtol=2e-2)
    calls = {
        "SDPA cuDNN causal": backend(SDPBackend.CUDNN_ATTENTION, q, k, v),
        "regard.survey": lambda: regard.survey(q, k, None, Causal(), executor="triton"),
        "regard.survey, entropy alone": lambda: regard.survey(
            q, k, None, Causal(), ("entropy",), executor="triton"
        ),
    }
    rows = compare(f"survey of entropy, received and tiles, n {n:,}", calls, rounds)
    on_device(rows, calls, rounds)
    return rows


def decode(b: int, m: int, rounds: int) -> list[dict]:
    page = 64
    q, k, v = make(b, H, 1, D), make(b, G, m, D), make(b, G, m, D)
    pages = [x.transpose(1, 2).reshape(-1, page, G, D).transpose(1, 2).contiguous() for x in (k, v)]
    table = torch.arange(b * m // page, device="cuda", dtype=torch.int32).view(b, 1, -1)
    lengths = torch.full((b, 1), m, device="cuda", dtype=torch.int32)
    keys = Paged(*pages, table, lengths)
    near = Rule(Causal() & (Window(1024) | Sinks(4)), offset=m - 1)
    want = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    got = regard.attend(q, keys, executor="paged")
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
    calls = {
        "SDPA on contiguous keys": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        "regard, paged": lambda: regard.attend(q, keys, executor="paged"),
        "regard, paged, window 1,024": lambda: regard.attend(q, keys, rule=near, executor="paged"),
    }
    rows = compare(f"decode, batch {b}, {m:,} keys, {H}/{G} heads", calls, rounds, 20)
    on_device(rows, calls, rounds)
    moved = 2 * k.numel() * k.element_size()
    for row in rows[:2]:  # a window reads less
        row["terabytes_a_second"] = round(moved / row["device_ms"] / 1e9, 3)
        print(f"  {row['call']}: {row['terabytes_a_second']} TB/s of keys and values")
    return rows


def scans(n: int, rounds: int) -> list[dict]:
    q, k, v = (make(1, H, n, D) for _ in range(3))
    calls = {"chunked": lambda: regard.scan(q, k, v, form="chunked")}
    calls["fla"] = lambda: regard.scan(q, k, v, form="fla")
    return compare(f"scan, n {n:,}", calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", metavar="NAME")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return
    rows: list[dict] = []
    with torch.no_grad():
        for n in (8192, 32768):
            rows += plain(n, given.rounds) + structured(n, given.rounds) + survey(n, given.rounds)
        for b in (1, 8, 32):
            rows += decode(b, 32768, given.rounds)
        rows += scans(65536, given.rounds)
    if given.save:
        save(given.save, rows, heads=H, key_heads=G, size=D, dtype="bfloat16")


if __name__ == "__main__":
    main()
