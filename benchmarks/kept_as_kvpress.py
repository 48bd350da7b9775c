"""Which keys are kept: ours against NVIDIA's kvpress, method by method, on the same prompts.

    pip install kvpress --no-deps --target peers && PYTHONPATH=peers:. python \
        benchmarks/kept_as_kvpress.py --save kept-as-kvpress

kvpress 0.5.5 asks for transformers below 5.3, and its hook fails on later ones; its scorers do not.
So each press scores the keys of a forward of the demo model by a hook of ours, and what it would
keep is compared with what our policy kept. Packages that its scorers do not use need not be there.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any
from unittest.mock import MagicMock

import torch
from side_by_side import save

import regard
from regard.bench.shrunk_models import haystack
from regard.models.loading import load
from regard.policies import policy

LENGTH, KEEP, WINDOW = 600, 0.25, 64


def presses() -> Any:
    """Import kvpress, with stand-ins for what is not installed and not used here."""
    for _ in range(20):
        try:
            return importlib.import_module("kvpress")
        except ModuleNotFoundError as missing:
            name = str(missing.name)
            if name.startswith("kvpress"):
                raise
            sys.modules[name] = MagicMock()
            for loaded in [x for x in sys.modules if x.startswith("kvpress")]:
                del sys.modules[loaded]
    raise ImportError("kvpress could not be imported")


def theirs(
    model: Any, ids: torch.Tensor, press: Any, per_layer: bool
) -> list[tuple[set[Any], set[Any]]]:
    """Places (head, position) that a press keeps in each layer, and those it might as well have.

    Keys of one score are kept or not as the sorting has it: one token's keys in the first layer
    have one norm, wherever it stands.
    """
    kept: list[tuple[set[Any], set[Any]]] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs["past_key_values"]
        layer = cache.layers[module.layer_idx]
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        scores = press.score(module, hidden, layer.keys, layer.values, None, kwargs)
        _, g, m = scores.shape
        count = int(m * KEEP)
        if per_layer:  # the budget of the layer is shared out among its heads
            least = max(1, int(count * 0.2))
            top = scores.topk(least, dim=-1).indices
            scores = scores.scatter(-1, top, torch.finfo(scores.dtype).max)
            flat = scores[0].flatten().topk(g * count).indices
            least = scores[0].flatten()[flat].min().expand(g, 1)
            own = {(int(x) // m, int(x) % m) for x in flat}
        else:
            found = scores[0].topk(count, dim=-1)
            least = found.values.min(-1, keepdim=True).values
            own = {(h, int(x)) for h in range(g) for x in found.indices[h]}
        tied = {(int(h), int(x)) for h, x in (scores[0] == least).nonzero()}
        kept.append((own, tied))

    hooks = [
        layer.self_attn.register_forward_hook(hook, with_kwargs=True)
        for layer in model.model.layers
    ]
    try:
        model(ids)
    finally:
        for one in hooks:
            one.remove()
    return kept


def ours(model: Any, ids: torch.Tensor, name: str, settings: dict[str, Any]) -> list[set[Any]]:
    """Places (head, position) that our policy keeps in each layer."""
    with regard.shrink(model, policy(name, **settings), keep=KEEP, check=False) as shrunk:
        model(ids)
        kept = []
        for layer in shrunk.stage.layers:
            at = layer.memory.positions[0]
            kept.append({(h, int(x)) for h, row in enumerate(at) for x in row if x >= 0})
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    kv = presses()
    model, tokenizer = load()
    model = model.float()
    model.set_attn_implementation("sdpa")
    pairs = {
        "knorm": ({}, kv.KnormPress(1 - KEEP), False),
        "keydiff": ({}, kv.KeyDiffPress(1 - KEEP), False),
        "streaming": ({"sinks": 4}, kv.StreamingLLMPress(1 - KEEP, n_sink=4), False),
        "snapkv": ({"window": WINDOW}, kv.SnapKVPress(1 - KEEP, window_size=WINDOW), False),
        "tova": ({}, kv.TOVAPress(1 - KEEP), False),
        "ada_kv": ({"window": WINDOW}, kv.SnapKVPress(1 - KEEP, window_size=WINDOW), True),
    }
    rows = []
    with torch.no_grad():
        for name, (settings, press, per_layer) in pairs.items():
            same = tied = total = 0
            for start in (0, 9000, 18000):
                ids = tokenizer(haystack()[start : start + 6 * LENGTH], return_tensors="pt")
                ids = ids["input_ids"][:, :LENGTH]
                a, b = ours(model, ids, name, settings), theirs(model, ids, press, per_layer)
                for x, (y, level) in zip(a, b, strict=True):
                    same += len(x & y)
                    tied += len((x - y) & level)
                    total += max(len(x), len(y))
            rows.append({"method": name, "kept": total, "same": same, "tied": tied})
            print(rows[-1], flush=True)
    if arguments.save:
        save(arguments.save, rows, tokens=LENGTH, keep=KEEP, window=WINDOW, kvpress="0.5.5")


if __name__ == "__main__":
    main()
