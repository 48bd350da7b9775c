"""What it costs that masked keys contribute exactly nothing: the look for keys without numbers.

    python benchmarks/containment.py

CPU seconds of the look beside those of the executor that the plan chooses, medians of rounds.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.scan import contain, prepare
from regard.core.support import Causal, Padding, Window
from regard.run.isolation import broken_keys
from regard.run.plan import executor_for
from regard.run.scanning import scan

ROUNDS = 7
OUT = Path(__file__).parent / "results" / "containment.json"


def call_of(n: int, m: int, rule: Rule) -> Call:
    """Return a call of 8 query heads over 2 key heads of size 64."""
    q, k = torch.randn(1, 8, n, 64), torch.randn(1, 2, m, 64)
    return Call.of(q, k, torch.randn(1, 2, m, 64), rule)


def seconds(run: object) -> float:
    """Time one run, in seconds of this process alone."""
    start = time.process_time()
    run()  # type: ignore[operator]  # any callable
    return time.process_time() - start


def timed(name: str, look: object, whole: object) -> dict[str, object]:
    """Time a look and what it is part of, one after the other, and print its share."""
    seconds(whole)
    rounds = [(seconds(look), seconds(whole)) for _ in range(ROUNDS)]
    share = [a / b for a, b in rounds]
    all_of_it = 1e3 * median(b for _, b in rounds)
    print(f"{name:36} {median(share):6.1%} of {all_of_it:.1f} ms")
    return {
        "look_ms": 1e3 * median(a for a, _ in rounds),
        "whole_ms": all_of_it,
        "share": median(share),
        "share_spread": [min(share), max(share)],
    }


def main() -> None:
    """Time every case, print a table and keep it."""
    torch.set_num_threads(1)
    padded = torch.arange(4096) > 100
    cases = {
        "causal, 1,024 tokens": call_of(1024, 1024, Rule(Causal())),
        "causal, 4,096 tokens": call_of(4096, 4096, Rule(Causal())),
        "window of 256, 4,096 tokens": call_of(4096, 4096, Rule(Causal() & Window(256))),
        "window of 64, 16,384 tokens": call_of(16384, 16384, Rule(Causal() & Window(64))),
        "one query, 4,096 keys, causal": call_of(1, 4096, Rule(Causal(), offset=4095)),
        "one query, 4,096 keys, 100 padded": call_of(1, 4096, Rule(Padding(padded), offset=4095)),
    }
    found = {}
    for name, call in cases.items():
        runs, _ = executor_for(call)
        found[name] = {"executor": runs.name} | timed(
            name, lambda call=call: broken_keys(call), lambda call=call, runs=runs: runs.out(call)
        )
    for n in (1024, 16384):
        name = f"scan with decay, {n:,} tokens"
        q, k, v = (torch.randn(1, 8, n, 64) for _ in range(3))
        tokens = prepare(q, k, v, log_decay=-0.1)
        found[name] = {"executor": "chunked scan"} | timed(
            name,
            lambda tokens=tokens: contain(tokens, ()),
            lambda q=q, k=k, v=v: scan(q, k, v, log_decay=-0.1),
        )
    OUT.write_text(json.dumps({"rounds": ROUNDS, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
