"""How fast Regard is inside vLLM: processes beside one another, whose rounds take turns.

`python benchmarks/serve_in_vllm.py --parts speed long` runs it.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve_in_vllm import HERE, engine, environment, tiny


def in_turns(jobs: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Run jobs, by what `REGARD` says, in a process each; their rounds take turns."""
    made: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        started = {}
        for number, (said, job) in enumerate(jobs.items()):
            asked, out = Path(folder) / f"{number}.json", Path(folder) / f"{number}.out.json"
            asked.write_text(json.dumps({**job, "wait": True}))
            log = stack.enter_context((Path(folder) / f"{number}.log").open("w+"))
            one = subprocess.Popen(
                [sys.executable, str(HERE / "ask_vllm.py"), str(asked), str(out)],
                env=environment(said), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True,
            )  # fmt: skip
            stack.callback(one.kill)
            started[said] = (one, out, log)
            _until_ready(one, log)
        rounds = len(next(iter(jobs.values()))["rounds"])
        for i in range(rounds):
            for one, _, log in started.values():
                assert one.stdin is not None
                one.stdin.write("go\n")
                one.stdin.flush()
                if i < rounds - 1:
                    _until_ready(one, log)
                else:
                    one.wait()
        for said, (_, out, _) in started.items():
            made[said] = json.loads(out.read_text())["rounds"]
    return made


def _until_ready(one: Any, log: Any) -> None:
    for line in one.stdout:
        if line.strip() == "ready":
            return
    log.seek(0)
    raise RuntimeError(log.read()[-4000:])


def speed(rounds: int = 6) -> dict[str, Any]:
    """Time 32 requests beside vLLM's own attention, round by round in turns."""
    draw = random.Random(0)
    prompts = [[draw.randrange(5, 500) for _ in range(draw.randrange(64, 512))] for _ in range(32)]
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "model": tiny(Path(folder), layers=6, hidden=512, heads=8),
            "engine": engine(kv_cache_memory_bytes=1 << 29, enable_prefix_caching=False),
            "rounds": [{"prompts": prompts, "tokens": 32}] * rounds,
        }  # fmt: skip
        said = ("", "on", "on kernel=regard", "shrink quest keep=10% page=32")
        found = in_turns(dict.fromkeys(said, job))
    made: dict[str, Any] = {"prompts": 32, "tokens": 32 * 32, "rounds": rounds - 1}
    for name, ran in found.items():
        one: dict[str, Any] = {}
        # The first round warms up. Of a processor that others use, its own seconds tell more.
        for kind in ("seconds", "cpu_seconds"):
            times, own = ([x[kind] for x in rows[1:]] for rows in (ran, found[""]))
            one[kind] = [round(x, 3) for x in times]
            one[f"times_of_vllm, {kind}"] = beside(own, times)
        one["tokens_per_second"] = round(32 * 32 / min(one["seconds"]), 1)
        made[name or "vllm"] = one
    return made


def beside(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Return how many times as fast ours is, round by round: the median, and the spread."""
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    found = {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
    return {name: round(x, 3) for name, x in found.items()}


def long_texts(
    rounds: int = 6,
    length: int = 8192,
    tokens: int = 24,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
) -> dict[str, Any]:
    """Time decoding of 2 requests of 8,192 tokens beside vLLM's own attention, in turns."""
    draw = random.Random(0)
    prompts = [[draw.randrange(5, 500) for _ in range(length)] for _ in range(2)]
    made: dict[str, Any] = {"prompts": 2, "length": length, "layers": 2, "heads": 16,
                            "key_heads": 8, "head_size": 64, "rounds": rounds - 1}  # fmt: skip
    for dtype in dtypes:
        with tempfile.TemporaryDirectory() as folder:
            job = {
                "model": tiny(Path(folder), layers=2, hidden=512, heads=16),
                # Prompts are read in the first round, and found in the cache of prefixes later.
                "keep_prefixes": True,
                "engine": engine(
                    dtype=dtype, kv_cache_memory_bytes=3 << 28, max_model_len=length + 128,
                    enable_prefix_caching=True, max_num_batched_tokens=2048,
                ),
                "rounds": [{"prompts": prompts, "tokens": tokens}] * rounds,
            }  # fmt: skip
            found = in_turns(dict.fromkeys(("", "on", "shrink quest keep=10% page=32"), job))
        own = [x["decoding"] / x["decoded"] for x in found[""]][1:]
        for name, ran in found.items():
            times = [x["decoding"] / x["decoded"] for x in ran][1:]
            made[f"{name or 'vllm'}, {dtype}"] = {
                "cpu_seconds_a_step": [round(x, 5) for x in times],
                "times_of_vllm": beside(own, times),
            }  # fmt: skip
    return made
