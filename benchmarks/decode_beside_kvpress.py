"""A decoded token beside kvpress' and beside the bare model, in one process: ratios round by round.

    python -m venv peers && peers/bin/pip install torch==2.13.0 kvpress==0.5.5
    peers/bin/pip install --no-deps 'transformers>=5.17' -e .
    peers/bin/python benchmarks/decode_beside_kvpress.py --save decode-beside-kvpress

kvpress names transformers below 5.3 but runs on later ones, once it is told where tokens stand
(`position_ids`, and `cache_position` at the prompt). A round times some steps of each side, first
the one, then the other, the order turning from round to round; its ratio is ours by theirs in CPU
seconds, so that other work on the machine hardly counts. Both decode after the same prompt, and
keep a quarter of it. `--bare` times an attached model without stages beside the model itself, and
needs no kvpress.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from statistics import median
from typing import Any

import torch
from side_by_side import save

KEEP, WINDOW, PROMPTS = 0.25, 64, {"shipped": 1024, "50M": 2048}
METHODS = ("knorm", "keydiff", "streaming", "snapkv", "tova", "pyramid_kv", "ada_kv", "h2o",
           "random")  # fmt: skip
# Ours evict at every step where their papers do; kvpress acts on prompts alone.
GO_ON = ("streaming", "tova", "h2o")
Step = Callable[[], None]


def load(which: str, how: str = "sdpa") -> Any:
    """The model that ships in float32, or one of 50 million weights as they fall."""
    if which == "50M":
        from beside_kvpress import larger

        model = larger()
        model.set_attn_implementation(how)
        return model
    from transformers import AutoModelForCausalLM

    from regard.models.loading import DEMO

    return AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation=how).float().eval()


def ids_for(which: str) -> torch.Tensor:
    """A prompt, [1, n]."""
    make = torch.Generator().manual_seed(0)
    return torch.randint(5, 2000, (1, PROMPTS[which]), generator=make)


def stepping(model: Any, ids: torch.Tensor, begun: Any) -> Step:
    """One step of a model after its prompt, which is read here (in a context)."""
    n = ids.shape[1]
    with begun:
        cache = model(ids, use_cache=True, cache_position=torch.arange(n)).past_key_values
    places = iter(torch.arange(n, n + 100_000)[:, None, None].unbind())

    def step() -> None:
        at = next(places)
        model(ids[:, :1], past_key_values=cache, position_ids=at, use_cache=True)

    return step


def ratios(one: Step, other: Step, rounds: int, steps: int) -> dict[str, float]:
    """Milliseconds of CPU a step of each, and their ratio: median, and the quartiles of rounds."""
    taken: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        found = {}
        for which in ((0, one), (1, other)) if turn % 2 else ((1, other), (0, one)):
            each = []
            for _ in range(steps):
                start = time.thread_time()
                which[1]()
                each.append(time.thread_time() - start)
            found[which[0]] = median(each)
        if turn:
            taken.append((found[0], found[1]))
    each = sorted(a / b for a, b in taken)
    return {
        "ours_ms": round(1e3 * median(a for a, _ in taken), 4),
        "theirs_ms": round(1e3 * median(b for _, b in taken), 4),
        "ratio": round(median(each), 3),
        "low": round(each[len(each) // 4], 3),
        "high": round(each[-1 - len(each) // 4], 3),
    }


def beside_press(which: str, method: str, go_on: bool, rounds: int, steps: int) -> dict[str, Any]:
    """One method of both."""
    from beside_kvpress import SETTINGS, press_of

    import regard
    from regard.policies import policy

    ids = ids_for(which)
    model, theirs = load(which), load(which, "eager" if method == "h2o" else "sdpa")
    made: Any = policy(method, **SETTINGS.get(method, {}))
    made = made.inner if method in GO_ON and not go_on else made
    with torch.no_grad(), ExitStack() as held:
        other = stepping(theirs, ids, press_of(method, KEEP)(theirs))
        held.enter_context(regard.shrink(model, made, keep=KEEP, check=False))
        one = stepping(model, ids, nullcontext())
        return ratios(one, other, rounds, steps)


def beside_bare(which: str, rounds: int, steps: int) -> dict[str, Any]:
    """A model that is attached to, without stages, beside one that is not."""
    from regard.models.attach import attach

    ids = ids_for(which)
    model, bare = load(which), load(which)
    with torch.no_grad(), attach(model, []):
        one, other = (stepping(x, ids, nullcontext()) for x in (model, bare))
        return ratios(one, other, rounds, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--models", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--bare", action="store_true", help="beside the bare model alone")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=16, help="of each side in a round")
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.bare:
        try:
            import kvpress  # noqa: F401 -- before ours: it wraps every attention that it finds
        except ImportError:
            print("kvpress is not installed here: only the bare model is beside ours")
            given.bare = True
    rows: list[dict[str, Any]] = []
    for which in given.models:
        steps = given.steps if which == "shipped" else max(2, given.steps // 4)
        if given.bare:
            rows.append({"model": which, "ours": "attached, no stage", "beside": "the bare model",
                         **beside_bare(which, given.rounds, steps)})  # fmt: skip
            print(rows[-1], flush=True)
            continue
        for method in given.methods:
            for go_on in (False, True) if method in GO_ON else (False,):
                found = beside_press(which, method, go_on, given.rounds, steps)
                name = f"{method}, at every step" if go_on else method
                rows.append({"model": which, "ours": name, "beside": f"kvpress: {method}", **found})
                print(rows[-1], flush=True)
    if given.save:
        save(given.save, rows, keep=KEEP, prompts=PROMPTS, rounds=given.rounds, steps=given.steps,
             clock="CPU seconds of the thread; low and high are quartiles of the rounds' ratios",
             kvpress="0.5.5")  # fmt: skip


if __name__ == "__main__":
    main()
