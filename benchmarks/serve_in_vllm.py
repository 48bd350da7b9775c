"""What Regard does inside vLLM: the same tokens, the same choices, and how fast.

    python benchmarks/serve_in_vllm.py --out benchmarks/results/vllm-cpu.json

Each part asks vLLM in a fresh process (`ask_vllm.py`) on a CPU, in float32:

- *same*: 64 prompts of mixed lengths on a tiny random Llama with heads of 64: prompts in pieces, a
  shared beginning from the cache of prefixes, and a cache so small that requests are preempted.
- *demo*: the model that ships (heads of 24) against `generate` of transformers, one text at a time.
- *shrink*: each policy against `regard.shrink` of transformers, one text at a time: tokens, and the
  keys that every step reads.
- *freed*: the blocks that `streaming` gives back.
- *see*: the survey of a request against `regard.see` of the same tokens.
- *steer*: controls of scores, weights and outputs by request, against `regard.steer`.
- *killed*: the worker of an HTTP server is killed while it answers.
- *fails*: a policy that raises, and requests that are cancelled: blocks are counted.
- *pages*: `quest` over vLLM's own kernel (heads of 64); a third of the requests decline it.
- *several*: three answers to each prompt, against requests of their own; beams.
- *processes*: two processes of half the heads each against one.
- *speed*, *long*: beside vLLM's own attention (`vllm_speed.py`).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.vllm_failures import fails, freed, killed
from benchmarks.vllm_speed import long_texts, speed
from benchmarks.vllm_surveys import seen
from benchmarks.vllm_tokens import (
    POLICIES,
    of_demo,
    pages,
    processes,
    same,
    several,
    shrunk,
    steered,
)

RUN = {
    "same": same, "demo": of_demo, "shrink": shrunk, "pages": pages, "freed": freed, "see": seen,
    "steer": steered, "fails": fails, "killed": killed, "several": several,
    "processes": processes, "speed": speed, "long": long_texts,
}  # fmt: skip
PARTS = tuple(RUN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    asked = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: `make vllm` makes an environment with it")
        return
    run: dict[str, Any] = dict(RUN)
    del run["shrink"]
    run |= {f"shrink {name}": partial(shrunk, name) for name in POLICIES}
    found: dict[str, Any] = {}
    if asked.out and asked.out.exists():
        found = json.loads(asked.out.read_text())
    for part in run:
        if part.split()[0] not in asked.parts or part.split()[-1] not in (part, *asked.policies):
            continue
        found[part] = {"date": datetime.date.today().isoformat(), **run[part]()}
        print(part, json.dumps(found[part]), flush=True)
        found["versions"] = versions()
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of what was run."""
    made = {"python": platform.python_version(), "processor": platform.machine()}
    for name in ("vllm-cpu", "vllm", "torch", "transformers", "regard"):
        try:
            made[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return made


if __name__ == "__main__":
    main()
