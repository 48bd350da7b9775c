"""An old commit beside the tree that stands here, in one run: is anything slower than it was?

    python benchmarks/two_commits.py b24655c                   # minutes
    python benchmarks/two_commits.py b24655c --save two-commits

Each side is a process of its own that imports its own tree (the old one is unpacked with `git
archive`), and both wait to be asked. A round asks each for one case, in turns, so that a machine
that slows down slows both; times are CPU seconds of one thread. Cases use what is public at both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def cases() -> dict[str, Callable[[], object]]:
    """Cases, each a call; they are made in the process of a side."""
    import torch
    import torch.nn.functional as F

    import regard
    from regard.models.attach import attach
    from regard.models.loading import load

    torch.set_num_threads(1)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 8, 4096, 64) for _ in range(3))
    half = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    window = regard.Rule(regard.Causal() & regard.Window(512))
    unit, beta = F.normalize(k, dim=-1), torch.rand(1, 8, 4096)
    tiny = torch.randn(1, 1, 8, 8)
    x = torch.randn(1, 1024, 256)
    layers = {name: regard.layer(name, 256, heads=4, causal=True) for name in ("mha", "gla")}
    model = load()[0].float()
    ids = torch.randint(5, 2000, (1, 1024))

    def both_ways() -> object:
        out = regard.attend(*half, window)
        return torch.autograd.grad(out, half, torch.ones_like(out))

    def many(call: Callable[[], object], times: int) -> Callable[[], object]:
        return lambda: [call() for _ in range(times)]

    def decoded(context: Callable[[], Any], tokens: int = 24) -> Callable[[], object]:
        def run() -> object:
            with context():
                cache = model(ids, use_cache=True).past_key_values
                start = time.thread_time()
                for _ in range(tokens):
                    model(ids[:, :1], past_key_values=cache, use_cache=True)
                return time.thread_time() - start

        return run

    def shrunk(name: str) -> Callable[[], object]:
        return decoded(lambda: regard.shrink(model, name, keep=0.25, check=False))

    return {
        "attend: causal, 4,096": lambda: regard.attend(q, k, v, regard.Causal()),
        "attend: window of 512, 4,096": lambda: regard.attend(q, k, v, window),
        "attend: the same, bfloat16, forward and backward": both_ways,
        "attend: 8 queries, 1,000 calls": many(lambda: regard.attend(tiny, tiny, tiny), 1000),
        "survey: entropy, received, tiles, 4,096": lambda: regard.survey(q, k, v, regard.Causal()),
        "scan: 4,096": lambda: regard.scan(q, unit, v),
        "scan: the delta rule, 4,096": lambda: regard.scan(q, unit, v, beta=beta),
        "layer mha: 1,024": lambda: layers["mha"](x),
        "layer gla: 1,024": lambda: layers["gla"](x),
        "see: the model that ships, 512": lambda: regard.see(model, ids[:, :512]),
        "attached, no stage: 24 tokens": decoded(lambda: attach(model, [], check=False)),
        **{f"shrink {x}: 24 tokens": shrunk(x) for x in ("knorm", "snapkv", "h2o", "ada_kv")},
    }  # fmt: skip


def serve() -> None:
    """Answer requests, a line each: the name of a case, for its CPU seconds."""
    import torch

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything else prints is no answer
    with torch.no_grad():
        made = cases()
        print(json.dumps(list(made)), file=out, flush=True)
        for line in sys.stdin:
            name = line.rstrip("\n")
            try:
                with torch.set_grad_enabled("backward" in name):
                    start = time.thread_time()
                    found = made[name]()
                    took = found if isinstance(found, float) else time.thread_time() - start
                print(json.dumps(took), file=out, flush=True)
            except Exception as error:  # a case that a side has no way to run is a result
                print(json.dumps(f"{type(error).__name__}: {error}"[:200]), file=out, flush=True)


class Side:
    """A process that imports one tree."""

    def __init__(self, tree: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--serve"], text=True, cwd=tree,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.names: list[str] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, name: str) -> Any:
        """CPU seconds of a case, or why there are none."""
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        return self._answer()


def unpacked(commit: str, home: str) -> Path:
    """The tree of a commit, in a folder of its own."""
    packed = subprocess.run(
        ["git", "-C", ROOT, "archive", commit, "regard"], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(home, filter="data")
    return Path(home)


def compared(old: Side, new: Side, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each case: milliseconds of both, and how many times faster the new one is."""
    from side_by_side import no_claim

    rows = []
    for name in names:
        taken: list[tuple[float, float]] = []
        failed = None
        for turn in range(rounds + 1):
            found: dict[Side, Any] = {}
            for side in (old, new) if turn % 2 else (new, old):
                found[side] = side.ask(name)
            failed = next((x for x in found.values() if isinstance(x, str)), None)
            if failed:
                break
            if turn:
                taken.append((found[old], found[new]))
        row: dict[str, Any] = {"what": name}
        if failed:
            row["broke"] = failed
        else:
            each = [a / b for a, b in taken]
            row |= {
                "old_ms": round(1e3 * median(a for a, _ in taken), 3),
                "new_ms": round(1e3 * median(b for _, b in taken), 3),
                "times_faster": round(median(each), 3),
                "least": round(min(each), 3), "most": round(max(each), 3), "rounds": rounds,
                "no_claim": no_claim(min(each), max(each), rounds),
            }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", nargs="?", default="b24655c", help="the commit to compare with")
    parser.add_argument("--cases", nargs="+", default=[""], help="words of the cases to run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    from side_by_side import save

    with tempfile.TemporaryDirectory() as home:
        old, new = Side(unpacked(given.old, home)), Side(ROOT)
        names = [x for x in new.names if any(word in x for word in given.cases)]
        rows = compared(old, new, names, given.rounds)
    if given.save:
        asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        now = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        save(given.save, rows, old=given.old, new=now, clock="CPU seconds of one thread")


if __name__ == "__main__":
    main()
