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
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from side_by_side import save

import regard
from regard.bench.shrunk_models import haystack
from regard.models.loading import load
from regard.policies import calibrate, policy
from regard.policies.calibration import read_calibration

Kept = list[tuple[set[Any], set[Any]]]
LENGTH, KEEP, WINDOW = 600, 0.25, 64
FILTERS = Path(tempfile.gettempdir()) / "regard-q-filters.cal"


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


def theirs(model: Any, ids: torch.Tensor, press: Any, per_layer: bool) -> Kept:
    """Places (head, position) that a press keeps in each layer, and those it might as well have.

    Keys of one score are kept or not as the sorting has it: one token's keys in the first layer
    have one norm, wherever it stands.
    """
    kept: Kept = []

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

    for layer in model.model.layers:  # as a press would
        layer.self_attn.rotary_emb = model.model.rotary_emb
    hooks = [
        layer.self_attn.register_forward_hook(hook, with_kwargs=True)
        for layer in model.model.layers
    ]
    try:
        model(ids)
    finally:
        for one in hooks:
            one.remove()
        for layer in model.model.layers:
            del layer.self_attn.rotary_emb
    return kept


def by_kvzip(model: Any, ids: torch.Tensor, press: Any, tokenizer: Any) -> Kept:
    """As `theirs`: KVzip scores a second forward, and all layers and heads share a budget."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    press._context_ids, press._cache, press.prefix_length = ids, cache, 0
    press._suffix_ids = torch.tensor([tokenizer.encode("\n", add_special_tokens=False)])
    press.context_length = ids.shape[1]

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = cache.layers[module.layer_idx]
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        press.score_kvzip(module, hidden, layer.keys, layer.values, None, kwargs)

    (pair,) = press.prepare(model, tokenizer)
    press.start_idx, press.end_idx = 0, ids.shape[1]
    hooks = [
        layer.self_attn.register_forward_hook(hook, with_kwargs=True)
        for layer in model.model.layers
    ]
    try:
        model(pair[1], past_key_values=cache)
    finally:
        for one in hooks:
            one.remove()
    scores = press.score_val[:, 0]  # [layers, g, m]
    top = scores.flatten().topk(scores.numel() - int(scores.numel() * (1 - KEEP)))
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[top.indices] = True
    level = scores == top.values.min()
    marked = kept.view_as(scores)
    places = [[{(int(h), int(x)) for h, x in mask.nonzero()} for mask in both]
              for both in zip(marked, level, strict=True)]  # fmt: skip
    return [(own, tied) for own, tied in places]


def ours(model: Any, ids: torch.Tensor, name: str, settings: dict[str, Any]) -> list[set[Any]]:
    """Places (head, position) that our policy keeps in each layer."""
    calibration = FILTERS if name == "q_filters" else None
    made = policy(name, **settings)
    with regard.shrink(model, made, keep=KEEP, calibrate=calibration, check=False) as shrunk:
        model(ids)
        kept = []
        for layer in shrunk.stage.layers:
            at = layer.memory.positions[0]
            kept.append({(h, int(x)) for h, row in enumerate(at) for x in row if x >= 0})
    return kept


def finch(kv: Any) -> Any:
    """FINCH with a question of so many tokens, which kvpress finds by a token in the prompt."""
    press = kv.FinchPress(1 - KEEP, rerotate_keys=False)
    press.window_size = WINDOW
    return press


def q_filters(kv: Any, model: Any, tokenizer: Any) -> Any:
    """Q-Filters with our directions; files of kvpress hold them turned around."""
    texts = tokenizer(haystack()[40_000:60_000], return_tensors="pt")["input_ids"].split(LENGTH, 1)
    calibrate(model, "q_filters", list(texts[:4]), to=FILTERS, overwrite=True)
    found = read_calibration(FILTERS)["found"]["filters"]
    press = kv.QFilterPress(1 - KEEP)
    press.q_filters = -torch.stack([found[layer] for layer in sorted(found)])
    return press


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    kv = presses()
    model, tokenizer = load()
    model = model.float()
    model.set_attn_implementation("sdpa")
    asked = tuple(
        x
        for said in ("\n\nRepeat the previous context exactly.", "\n")
        for x in tokenizer.encode(said, add_special_tokens=False)
    )
    pairs: dict[str, tuple[dict[str, Any], Any, bool | None]] = {
        "knorm": ({}, kv.KnormPress(1 - KEEP), False),
        "keydiff": ({}, kv.KeyDiffPress(1 - KEEP), False),
        "streaming": ({"sinks": 4}, kv.StreamingLLMPress(1 - KEEP, n_sink=4), False),
        "snapkv": ({"window": WINDOW}, kv.SnapKVPress(1 - KEEP, window_size=WINDOW), False),
        "tova": ({}, kv.TOVAPress(1 - KEEP), False),
        "ada_kv": ({"window": WINDOW}, kv.SnapKVPress(1 - KEEP, window_size=WINDOW), True),
        "expected_attention": ({}, kv.ExpectedAttentionPress(1 - KEEP), False),
        "finch": ({"window": WINDOW}, finch(kv), False),
        "kvzip": ({"sinks": 0, "ask": asked}, kv.KVzipPress(1 - KEEP, n_sink=0), None),
        "q_filters": ({}, q_filters(kv, model, tokenizer), False),
    }
    rows = []
    with torch.no_grad():
        for name, (settings, press, per_layer) in pairs.items():
            same = tied = total = 0
            for start in (0, 9000, 18000):
                ids = tokenizer(haystack()[start : start + 6 * LENGTH], return_tensors="pt")
                ids = ids["input_ids"][:, :LENGTH]
                a = ours(model, ids, name, settings)
                if per_layer is None:
                    b = by_kvzip(model, ids, press, tokenizer)
                else:
                    b = theirs(model, ids, press, per_layer)
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
