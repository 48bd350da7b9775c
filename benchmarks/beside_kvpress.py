"""Quality, memory and speed beside NVIDIA's kvpress: same model, budgets, texts and measures.

    python -m venv peers && peers/bin/pip install torch==2.13.0 kvpress==0.5.5
    python benchmarks/beside_kvpress.py --peer peers/bin/python --save beside-kvpress

kvpress asks for transformers below 5.3 and Regard for a later one, so each side runs in its own
environment, turn by turn on one machine and one thread, beside the full model of its own
environment. Its presses act on prompts alone; after them it is given the right positions, as its
own pipeline gives them. Policies of ours that go on evicting at every step are measured both ways.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from regard.bench.shrunk_models import Setting, bits_per_byte, needles, recall, texts
from regard.models.loading import DEMO

WINDOW, STEPS, ROUNDS = 64, 32, 9
METHODS = ("full", "knorm", "keydiff", "streaming", "snapkv", "tova", "pyramid_kv", "ada_kv", "h2o",
           "random")  # fmt: skip
GO_ON = ("streaming", "tova", "h2o")
# Timed on a larger model as well, where arithmetic outweighs Python.
LARGER = ("full", "knorm", "snapkv", "ada_kv")
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"window": WINDOW} for name in ("snapkv", "pyramid_kv", "ada_kv")},
}


# The text of the larger model, and the budget at which it is timed.
LONG = torch.randint(0, 4096, (1, 2048), generator=torch.Generator().manual_seed(0))
TIMED = 0.25
# Who measures, and how the tables name it.
SIDES = {"ours": "regard", "theirs": "kvpress", "ours, at every step": "regard, at every step"}


def loaded(eager: bool) -> tuple[Any, Any]:
    """The model that ships, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = "eager" if eager else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation=how).float().eval()
    return model, AutoTokenizer.from_pretrained(DEMO)


class Placed:
    """A model under a press, told where tokens stand: the cache no longer knows."""

    def __init__(self, model: Any, press: Any) -> None:
        self.model, self.press = model, press

    def __call__(self, ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        seen = getattr(past_key_values, "told", 0)
        places = torch.arange(seen, seen + ids.shape[1])
        begins = past_key_values is None
        with self.press(self.model) if begins and self.press is not None else nullcontext():
            out = self.model(
                ids, past_key_values=past_key_values, use_cache=True, cache_position=places,
                position_ids=places.expand(len(ids), -1),
            )  # fmt: skip
        out.past_key_values.told = seen + ids.shape[1]
        return out


def press_of(method: str, keep: float) -> Any:
    """The press of a method."""
    import kvpress as kv

    less = 1 - keep
    return {
        "full": lambda: None,
        "knorm": lambda: kv.KnormPress(less),
        "keydiff": lambda: kv.KeyDiffPress(less),
        "streaming": lambda: kv.StreamingLLMPress(less, n_sink=4),
        "snapkv": lambda: kv.SnapKVPress(less, window_size=WINDOW),
        "tova": lambda: kv.TOVAPress(less),
        "pyramid_kv": lambda: kv.PyramidKVPress(less, window_size=WINDOW),
        "ada_kv": lambda: kv.AdaKVPress(kv.SnapKVPress(less, window_size=WINDOW)),
        "h2o": lambda: kv.ObservedAttentionPress(less),
        "random": lambda: kv.RandomPress(less, seed=0),
    }[method]()


def spent(model: Any, ids: torch.Tensor) -> tuple[float, float]:
    """CPU seconds of a prompt, and of a step after it."""
    first = time.process_time()
    cache = model(ids, use_cache=True).past_key_values
    second = time.process_time()
    for step in range(STEPS):
        model(ids[:, step : step + 1], past_key_values=cache, use_cache=True)
    return second - first, (time.process_time() - second) / STEPS


def larger() -> Any:
    """A model of 50 million weights as they fall."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=768, intermediate_size=2048, num_hidden_layers=8,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def times(one: Any, whole: Any, ids: torch.Tensor, count: int = ROUNDS) -> dict[str, float]:
    """CPU seconds of a prompt and of a step, and medians of their ratio to the full model's.

    The full model is asked before and after, so that a machine that slows down slows both.
    """
    before, rounds = spent(whole, ids), []
    for _ in range(count):
        own, after = spent(one, ids), spent(whole, ids)
        rounds.append((own, [(a + b) / 2 for a, b in zip(before, after, strict=True)]))
        before = after
    found = {}
    for which, name in enumerate(("prompt", "step")):
        found[name] = median(own[which] for own, _ in rounds)
        found[f"{name}_of_full"] = median(own[which] / full[which] for own, full in rounds)
    return found


def on_larger(one: Any) -> dict[str, float]:
    """The same on the larger model."""
    return {f"larger_{name}": x for name, x in times(one, larger(), LONG, 3).items()}


def quality(model: Any, tokenizer: Any, setting: Setting) -> dict[str, Any]:
    """What a model still can do; where it breaks, what it said."""
    found: dict[str, Any] = {}
    for name, measure in (("needle", needles), ("recall", recall), ("bits", bits_per_byte)):
        try:
            value = measure(model, tokenizer, setting)
            found[name] = value if isinstance(value, float) else value.share
        except RuntimeError as error:
            found[name] = None
            found[f"{name}_broke"] = f"{error}".splitlines()[0]
    return found


def theirs(method: str, keep: float, setting: Setting) -> dict[str, Any]:
    """Measure a press."""
    model, tokenizer = loaded(eager=method == "h2o")
    placed = Placed(model, press_of(method, keep))
    ids = texts(tokenizer, setting.length)
    found = quality(placed, tokenizer, setting) | times(placed, loaded(eager=False)[0], ids)
    held = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for layer in placed(ids).past_key_values.layers for x in (layer.keys, layer.values)
    }  # fmt: skip
    if method == "full" or (keep == TIMED and method in LARGER):
        placed = Placed(larger(), press_of(method, keep))
        found |= on_larger(placed)
    return {**found, "bytes": sum(held.values())}


def ours(method: str, keep: float, setting: Setting, *, go_on: bool) -> dict[str, Any]:
    """Measure a policy; one that goes on evicting does so if `go_on`."""
    import regard
    from regard.policies import policy

    model, tokenizer = loaded(eager=False)
    whole = loaded(eager=False)[0]
    ids = texts(tokenizer, setting.length)
    if method == "full":
        found = quality(model, tokenizer, setting) | times(model, whole, ids)
        found |= on_larger(larger())
        layers = model(ids, use_cache=True).past_key_values.layers
        return {**found, "bytes": sum(x.keys.nbytes + x.values.nbytes for x in layers)}

    def made() -> Any:
        one = policy(method, **SETTINGS.get(method, {}))
        return one.inner if method in GO_ON and not go_on else one

    with regard.shrink(model, made(), keep=keep, check=False) as shrunk:
        found = quality(model, tokenizer, setting) | times(model, whole, ids)
        model(ids)
        found["bytes"] = shrunk.report().bytes
    if keep == TIMED and method in LARGER:
        big = larger()
        with regard.shrink(big, made(), keep=keep, check=False):
            found |= on_larger(big)
    return found


def asked(python: str, side: str, method: str, keep: float) -> dict[str, Any]:
    """Measure one side in an environment of its own."""
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [python, __file__, "--side", side, "--method", method, "--keep", str(keep)],
        capture_output=True, text=True, cwd=root, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def with_kept(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a file with those just measured in their places; they carry the date of their own."""
    from side_by_side import RESULTS, machine

    def which(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["method"], row["keep"], row["by"]

    path = RESULTS / f"{name}.json"
    said = json.loads(path.read_text()) if path.exists() else {"rows": [], "machine": {}}
    rows = [{**row, "date": machine()["date"]} for row in rows]
    kept = [{"date": said["machine"].get("date"), **row} for row in said["rows"]]
    new = {which(row): row for row in rows}
    old = {which(row) for row in kept}
    return [new.get(which(row), row) for row in kept] + [r for r in rows if which(r) not in old]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python that has kvpress")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument(
        "--methods",
        choices=METHODS,
        nargs="+",
        default=METHODS,
        help="measure these alone, and leave other rows of --save as they are",
    )
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=list(SIDES))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    setting = Setting(draws=8)
    if arguments.side:
        torch.set_num_threads(1)
        with torch.no_grad():
            method, keep = arguments.method, arguments.keep[0]
            if arguments.side == "theirs":
                found = theirs(method, keep, setting)
            else:
                found = ours(method, keep, setting, go_on=arguments.side != "ours")
            print(json.dumps(found))
        return
    if not arguments.peer and "theirs" in arguments.sides:
        parser.error("name a Python that has kvpress: --peer")
    rows = []
    for method in arguments.methods:
        for keep in arguments.keep if method != "full" else [1.0]:
            for side in arguments.sides:
                name = SIDES[side]
                if side == "ours, at every step" and method not in GO_ON:
                    continue
                python = arguments.peer if side == "theirs" else sys.executable
                found = asked(python, side, method, keep)
                rows.append({"method": method, "keep": keep, "by": name, **found})
                print(rows[-1], flush=True)
    if arguments.save:
        from side_by_side import save

        save(
            arguments.save, with_kept(arguments.save, rows), length=setting.length,
            window=WINDOW, steps=STEPS, kvpress="0.5.5, transformers 5.2.0",
            seconds="CPU seconds, medians of 9 rounds",
            larger="50 million weights, 2,048 tokens, 3 rounds",
        )  # fmt: skip


if __name__ == "__main__":
    main()
