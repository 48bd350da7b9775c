"""Time a survey beside causal attention, and measure its memory at length.

    python benchmarks/survey.py               # both
    python benchmarks/survey.py --save NAME   # also writes benchmarks/results/NAME.json

8 heads of 64, float32; entropy, received mass and tile map. Memory is the rise of the peak resident
size of a fresh process (Linux); the matrix alone would take 4 n^2 bytes a head.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch
import torch.nn.functional as F
from side_by_side import CLOCKS, compare, save

import regard

H, D = 8, 64
MEMORY = """
import json, sys, time, torch, regard

def kib(name):  # VmRSS: resident now; VmHWM: the most so far
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

n = int(sys.argv[1])
torch.manual_seed(0)
q, k = torch.randn(1, 8, n, 64), torch.randn(1, 8, n, 64)
regard.survey(q[:, :, :256], k[:, :, :256], None, regard.Causal())
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # forget the peak
before = kib("VmRSS")
start = time.perf_counter()
regard.survey(q, k, None, regard.Causal())
took = time.perf_counter() - start
print(json.dumps({"extra_mib": (kib("VmHWM") - before) / 1024, "seconds": took}))
"""


def speed(n: int, rounds: int, clock: str) -> list[dict]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, H, n, D) for _ in range(3))

    def eager() -> tuple[torch.Tensor, ...]:
        """What a user writes without a survey: the matrix, softmax, sums."""
        scores = (q @ k.transpose(-1, -2)) * D**-0.5
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        w = scores.softmax(-1)
        entropy = -torch.special.xlogy(w, w).sum(-1)
        tiles = w.unflatten(2, (-1, 64)).unflatten(4, (-1, 64))
        return entropy, w.sum(2), tiles.sum((3, 5)), tiles.amax((3, 5))

    with torch.no_grad():
        return compare(
            f"survey of entropy, received and tiles, causal, n {n:,}",
            {
                "SDPA causal": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                "regard.survey": lambda: regard.survey(q, k, v, regard.Causal()),
                "eager softmax and sums": eager,
            },
            rounds,
            clock=CLOCKS[clock],
        )


def memory(n: int) -> dict:
    command = [sys.executable, "-c", MEMORY, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    matrix = 4 * H * n * n / 2**20
    print(
        f"\nn {n:,}: {said['extra_mib']:.0f} MiB above the tensors in {said['seconds']:.1f} s; "
        f"the matrix alone is {matrix:,.0f} MiB"
    )
    return {"case": "memory", "n": n, "matrix_mib": matrix, **said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--long", type=int, default=32768)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of one thread")
    parser.add_argument("--save", metavar="NAME")
    given = parser.parse_args()
    rows = [*speed(given.n, given.rounds, given.clock), memory(given.long)]
    if given.save:
        save(given.save, rows, heads=H, size=D, clock=given.clock)


if __name__ == "__main__":
    main()
