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

from benchmarks.vllm_jobs import HERE, engine, environment, tiny


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


# What is decoded: type, heads, key heads, size of a head. The last is a layer of an 8B Llama 3.
LAYERS = (("float32", 16, 8, 64), ("bfloat16", 16, 8, 64), ("bfloat16", 32, 8, 128))
# One bound for each block of vLLM, as Quest has one for each page.
QUEST = "shrink quest keep=10% page=32 logical=32"


def long_texts(
    rounds: int = 6,
    length: int = 8192,
    tokens: int = 64,
    layers: Sequence[tuple[str, int, int, int]] = LAYERS,
) -> dict[str, Any]:
    """Time decoding of 2 requests of 8,192 tokens beside vLLM's own attention, in turns.

    What a step takes is the mean over an answer, bounds of pages that its first token waits for
    among it.
    """
    draw = random.Random(0)
    prompts = [[draw.randrange(5, 500) for _ in range(length)] for _ in range(2)]
    made: dict[str, Any] = {"prompts": 2, "length": length, "tokens": tokens, "layers": 2,
                            "rounds": rounds - 1}  # fmt: skip
    for dtype, heads, key_heads, head_size in layers:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            job = {
                "model": tiny(path, 2, 512, heads, key_heads, head_size),
                # Prompts are read in the first round, and found in the cache of prefixes later.
                "keep_prefixes": True,
                "engine": engine(
                    dtype=dtype, kv_cache_memory_bytes=3 << 28, max_model_len=length + 128,
                    enable_prefix_caching=True, max_num_batched_tokens=2048,
                ),
                "rounds": [{"prompts": prompts, "tokens": tokens}] * rounds,
            }  # fmt: skip
            found = in_turns(dict.fromkeys(("", QUEST), job))
        own = [x["decoding"] / x["decoded"] for x in found[""]][1:]
        for name, ran in found.items():
            times = [x["decoding"] / x["decoded"] for x in ran][1:]
            said = f"{name or 'vllm'}, {dtype}, {heads} heads of {head_size}, {key_heads} of keys"
            made[said] = {
                "cpu_seconds_a_step": [round(x, 5) for x in times],
                "times_of_vllm": beside(own, times),
            }  # fmt: skip
    return made
