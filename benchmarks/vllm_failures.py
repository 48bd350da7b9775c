"""What fails in vLLM, and what is given back: policies that raise, cancelled requests, blocks."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.vllm_jobs import ask, demo, engine, texts


def fails() -> dict[str, Any]:
    """Let a policy raise for long requests, and cancel others: the rest goes on."""
    _, tokenizer, folder = demo()
    prompts = texts(tokenizer, 16)
    job = {
        "model": folder, "engine": engine(max_num_batched_tokens=128),
        "rounds": [
            {"prompts": prompts, "tokens": 16, "cancel": {"6": [0, 3], "9": [5]}},
            {"prompts": [x for x in prompts if len(x) < 150][:2], "tokens": 4},
        ],
    }  # fmt: skip
    found = ask("shrink benchmarks.ask_vllm:Breaks keep=50%", job)
    first, second = found["rounds"]
    ends = [a["end"] if a else "cancelled" for a in first["answers"]]
    long = [i for i, ids in enumerate(prompts) if len(ids) > 200]
    return {
        "requests": len(prompts), "ends": {x: ends.count(x) for x in sorted(set(ends))},
        "long": len(long),
        "said": next((a["why"] for a in first["answers"] if a and a["end"] == "error"), ""),
        "blocks_lost": [x["free_before"] - x["free_after"] for x in (first, second)],
        "served_after": [a["end"] for a in second["answers"]],
    }  # fmt: skip


def refused(cases: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Start servers that `REGARD` asks what they cannot do: why each does not start."""
    _, _, folder = demo()
    asked = [{"regard": said, "engine": engine(**more)} for said, more in cases]
    why: list[str] = ask(cases[0][0], {"model": folder, "refused": asked})["why"]
    return why


def freed(tokens: int = 100) -> dict[str, Any]:
    """Count the blocks that a request holds at its end, of as many as it had at most."""
    _, tokenizer, folder = demo()
    job = {
        "model": folder, "engine": engine(enable_prefix_caching=False),
        "rounds": [{"prompts": texts(tokenizer, 1, 900, 901), "tokens": tokens}],
    }  # fmt: skip
    made = {}
    for said in ("on", "shrink streaming keep=96"):
        one = ask(said, job)["rounds"][0]
        held = [x for x in one["used"] if x]
        made[said] = {"blocks_at_most": max(held), "at_the_end": held[-1]}
    return made


def killed(tokens: int = 1800) -> dict[str, Any]:
    """Kill the worker of an HTTP server while it answers: what clients are told, how it ends."""
    import psutil

    from examples.serve_over_http import served

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        log, own = Path(folder) / "log.txt", psutil.Process()
        _, _, model = demo()
        with served(Path(model), "shrink quest keep=50% page=32", log) as address:
            found["before"] = post(address, 4)[0]
            server = own.children()[-1]
            workers = [x for x in server.children(recursive=True) if "Engine" in x.name()]
            asked = threading.Thread(target=lambda: found.update(during=post(address, tokens)))
            asked.start()
            time.sleep(2.0)
            with urllib.request.urlopen(f"{address}/metrics", timeout=30) as metrics:
                said = metrics.read().decode().splitlines()
            bytes_ = [float(x.split()[-1]) for x in said if x.startswith("regard_policy_bytes ")]
            found["policy_bytes"] = bytes_
            for worker in workers:
                os.kill(worker.pid, signal.SIGKILL)
            at = time.perf_counter()
            asked.join(60)
            found["seconds_until_told"] = round(time.perf_counter() - at, 2)
            found["after"] = post(address, 4)
            found["workers"] = len(workers)
            _, alive = psutil.wait_procs([server], 60)
            found["server_ended"], found["left"] = not alive, sum(x.is_running() for x in workers)
        found["log"] = [x for x in log.read_text().splitlines() if "EngineDead" in x][-1:]
    return found


def post(address: str, tokens: int) -> tuple[int, str]:
    """Ask a server for a completion: the status, 0 if there was none, and what it said."""
    asked = {"model": "model", "prompt": "def first(", "max_tokens": tokens, "ignore_eos": True}
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()[:400]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()[:400]
    except OSError as error:
        return 0, str(error)
