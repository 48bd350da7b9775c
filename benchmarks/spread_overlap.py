"""How much of a ring's messages is hidden behind its computing: two hosts and a slow cable.

    python benchmarks/spread_overlap.py --save spread-overlap --picture overlap.png

Two network namespaces of this machine, a rank in each, joined by a cable of 1 Gbit/s (so it needs
the right to make them). A round runs forward and backward of one causal attention in a zigzag three
times: as it is (T), without messages (C), and messages alone (M), each of the slower rank. What is
hidden is (M + C - T) / M; and, of what a rank waited in T, 1 - waited / M, which counts waiting for
a rank that is late as not hidden. The trace of the last round is drawn, and written as a Chrome
trace where `--trace` says.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor

import regard
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.schemes import ShardedKeys, ZigZag, peers_of, ring_attention, ring_passes
from regard.schemes.messages import Peers, Waiting

HEADS, SIZE = 8, 64
Span = tuple[str, str, float, float]


class Recorder:
    """Spans of what this rank does, and ways to leave a part of it out."""

    def __init__(self, there: Any = ring_attention, back: Any = ring_passes) -> None:
        self.spans: list[Span] = []
        self.there, self.back = there, back
        self.attend, self.grads = there.partial_over, back.part_grads
        self.exchange, self.wait = Peers.exchange, Waiting.wait
        self.received = 0

    def span(self, kind: str, name: str, call: Callable[[], Any]) -> Any:
        """Run, and keep when."""
        began = time.monotonic()
        made = call()
        self.spans.append((kind, name, began, time.monotonic()))
        return made

    def use(self, computing: bool = True, messages: bool = True) -> None:
        """Leave computing or messages out from now on."""
        self.spans = []

        def attend(rule: Rule, q: Tensor, k: Tensor, v: Tensor, *more: Any) -> Partial:
            if not computing:
                return Partial(q.new_zeros(*q.shape[:3], v.shape[3]), q.new_zeros(q.shape[:3]))
            return self.span(
                "computing", "attend", lambda: self.attend(rule, q, k, v, *more)
            )  # fmt: skip

        def grads(*args: Any) -> list[Tensor | None]:
            if not computing:
                return [None, None, None]
            found: list[Tensor | None] = self.span(
                "computing", "gradients", lambda: self.grads(*args)
            )
            return found

        def exchange(
            peers: Peers, sends: Any, receives: Any, what: str, *a: Any, **b: Any
        ) -> Waiting:
            if not messages and "handshake" not in what:
                for x in receives.values():
                    x.zero_()
                return Waiting(peers, [], what)
            made = self.exchange(peers, sends, receives, what, *a, **b)
            if "handshake" not in what:
                now = time.monotonic()
                self.received += sum(x.numel() * x.element_size() for x in receives.values())
                self.spans.append(("posted", what, now, now))
            return made

        def wait(waiting: Waiting) -> None:
            kind = "agreeing" if "handshake" in waiting.what else "waiting"
            self.span(kind, waiting.what, lambda: self.wait(waiting))

        self.there.partial_over, self.back.part_grads = attend, grads
        # Timed methods replace them.
        Peers.exchange, Waiting.wait = exchange, wait  # type: ignore[assignment, method-assign]


def one_rank(folder: Path, tokens: int, rounds: int) -> None:
    """Time all rounds on this rank, and write what was found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    peers = peers_of(None)
    layout = ZigZag(tokens, peers.world)
    torch.manual_seed(0)
    own = [
        layout.take(torch.randn(1, HEADS, tokens, SIZE), peers.rank, 2).requires_grad_(True)
        for _ in range(3)
    ]
    d_out, recorder = torch.randn_like(own[0]), Recorder()

    def call() -> float:
        keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme="ring")
        dist.barrier()
        began = time.monotonic()
        torch.autograd.grad(regard.attend(own[0], keys, rule=Rule(Causal())), own, d_out)
        return time.monotonic() - began

    found: dict[str, Any] = {"T": [], "C": [], "M": [], "waited": []}
    for _ in range(rounds + 1):
        recorder.use(computing=False)
        recorder.received = 0
        found["M"].append(call())
        found["received"] = recorder.received
        recorder.use(messages=False)
        found["C"].append(call())
        recorder.use()
        found["T"].append(call())
        found["spans"] = recorder.spans
        found["waited"].append(sum(y - x for kind, _, x, y in recorder.spans if kind == "waiting"))
    for name in ("T", "C", "M", "waited"):
        found[name] = found[name][1:]  # the first warms up
    (folder / f"rank{peers.rank}").write_text(json.dumps(found), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


def chrome(ranks: list[list[Span]]) -> list[dict[str, Any]]:
    """Return the events of a Chrome trace."""
    start = min(x[2] for spans in ranks for x in spans)
    return [
        {
            "name": name, "cat": kind, "ph": "i" if kind == "posted" else "X", "pid": rank,
            "tid": kind, "ts": 1e6 * (began - start), "dur": 1e6 * (ended - began), "s": "t",
        }
        for rank, spans in enumerate(ranks)
        for kind, name, began, ended in spans
    ]  # fmt: skip


def draw(ranks: list[list[Span]], message: float, path: Path) -> None:
    """Draw what each rank did: computing, messages (for as long as the cable takes), waiting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots()
    start = min(x[2] for spans in ranks for x in spans)
    colors = {"computing": "C0", "waiting": "C3", "agreeing": "C7"}
    for rank, spans in enumerate(ranks):
        for kind, name, began, ended in spans:
            if kind == "posted":
                axes.barh(2 * rank + 0.8, 1e3 * message, 0.3, 1e3 * (began - start), color="C2")
                axes.text(1e3 * (began - start), 2 * rank + 1.05, name, fontsize=6)
            else:
                axes.barh(2 * rank, 1e3 * (ended - began), 0.7, 1e3 * (began - start),
                          color=colors[kind])  # fmt: skip
    axes.set_yticks([0, 0.8, 2, 2.8], ["rank 0", "messages", "rank 1", "messages"])
    axes.invert_yaxis()
    axes.set(xlabel="ms", title="a ring over two hosts, 1 Gbit/s: computing (blue), messages for "
             "as long as the cable takes (green), waiting (red), handshake (gray)")  # fmt: skip
    axes.title.set_fontsize(8)
    figure.savefig(path, dpi=120)


def main() -> None:
    from side_by_side import save

    from tests.schemes.hosts import torchrun, two_hosts

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabits", type=int, default=1000)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    parser.add_argument("--picture", help="where to draw the last round")
    parser.add_argument("--trace", help="where to write it as a Chrome trace")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, two_hosts(said.megabits) as hosts:
        torchrun(
            hosts, 1, "benchmarks.spread_overlap", folder, str(said.tokens), str(said.rounds),
            limit=500,
        )  # fmt: skip
        ranks = [json.loads((Path(folder) / f"rank{r}").read_text()) for r in range(2)]
    T, C, M, waited = (
        [max(x) for x in zip(*(one[name] for one in ranks), strict=True)]
        for name in ("T", "C", "M", "waited")
    )
    shares = {
        "hidden": [(m + c - t) / m for t, c, m in zip(T, C, M, strict=True)],
        "hidden_by_waits": [1 - w / m for w, m in zip(waited, M, strict=True)],
    }
    wire = 8 * ranks[0]["received"] / (1e6 * said.megabits)
    row: dict[str, Any] = {
        "case": f"causal, {said.tokens:,} tokens, 2 hosts, {said.megabits} Mbit/s",
        "received": ranks[0]["received"], "cable_ms": round(1e3 * wire, 1),
    }  # fmt: skip
    for name, times in (("together_ms", T), ("computing_ms", C), ("messages_ms", M),
                        ("waited_ms", waited)):  # fmt: skip
        row[name] = [round(1e3 * x, 1) for x in times]
    for name, found in shares.items():
        row[name] = {
            "median": round(statistics.median(found), 3), "least": round(min(found), 3),
            "most": round(max(found), 3),
        }  # fmt: skip
    print(row)
    spans = [one["spans"] for one in ranks]
    if said.trace:
        Path(said.trace).write_text(json.dumps({"traceEvents": chrome(spans)}), "utf-8")
    if said.picture:
        draw(spans, wire / max(1, sum(x[0] == "posted" for x in spans[0])), Path(said.picture))
    if said.save:
        day, load = datetime.date.today().isoformat(), round(os.getloadavg()[0], 1)
        save(said.save, [row], heads=HEADS, size=SIZE, rounds=said.rounds, date=day, load=load)


if __name__ == "__main__":
    if len(sys.argv) == 4 and not sys.argv[1].startswith("-"):
        one_rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
