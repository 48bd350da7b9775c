"""Python frames that one decoded token takes in each layer, under each policy.

A small model waits for Python more than for its kernels, so the frames of a layer's attention are
what a step costs beyond them: every Python function that is entered between the model's call of
attention and its return counts as one.

    python benchmarks/decode_frames.py [policy ...]
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch

import regard
from regard.models import attention_interface
from regard.models.loading import load

# What issue 14 asks for.
MOST = {
    "knorm": 60, "snapkv": 60, "streaming": 60, "quantized": 60,
    "quest": 90, "h2o": 90, "tova": 90, "ada_kv": 90,
}  # fmt: skip
PROMPT, TOKENS = 200, 8


def frames(model: Any, ids: torch.Tensor) -> Counter[str]:
    """Count frames by function over `TOKENS` steps, a layer and token each on average."""
    found: Counter[str] = Counter()
    calls = 0
    own = attention_interface.attention.__code__
    depth = 0

    def note(frame: Any, event: str, _: Any) -> None:
        nonlocal depth, calls
        if event == "call":
            if frame.f_code is own:
                calls += 1
                depth = 1
            elif depth:
                depth += 1
            if depth:
                found[f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_code.co_name}"] += 1
        elif event == "return" and depth:
            depth -= 1

    def step(given: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        made = model(given, past_key_values=cache, use_cache=True)
        return made.logits[:, -1:].argmax(-1), made.past_key_values

    with torch.no_grad():
        token, cache = step(ids, None)
        for _ in range(4):
            token, cache = step(token, cache)
        for _ in range(TOKENS):
            sys.setprofile(note)
            try:
                token, cache = step(token, cache)
            finally:
                sys.setprofile(None)
    # A Counter of means, not counts.
    return Counter({name: round(x / max(calls, 1), 2) for name, x in found.items()})  # type: ignore[misc]


def main() -> int:
    """Print a row for each policy; fail where one takes more frames than it may."""
    model, _ = load()
    ids = torch.randint(5, 100, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    over = 0
    for name in sys.argv[1:] or MOST:
        with regard.shrink(model, name, keep=0.25, check=False):
            found = frames(model, ids)
        total = sum(found.values())
        most = MOST.get(name)
        over += most is not None and total > most
        print(f"{name:>12}  {total:6.1f} frames a layer" + (f" (at most {most})" if most else ""))
        if len(sys.argv) > 1:
            for function, count in found.most_common(60):
                print(f"{count:14.2f}  {function}")
    return int(over > 0)


if __name__ == "__main__":
    raise SystemExit(main())
