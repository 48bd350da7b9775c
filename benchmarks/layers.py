"""Time layers beside x-transformers and plain eager code, and see how linear ones grow.

    python benchmarks/layers.py                       # tables
    python benchmarks/layers.py --save layers-cpu     # also benchmarks/results/layers-cpu.json

x-transformers (pip install x-transformers) is used at its best setting for each mechanism (`flash`
where it can). Without it, layers are timed beside plain eager code alone. Growth is the slope of
log time and of log bytes of the largest tensor against log length.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import compare, save
from torch import Tensor, nn

import regard
from regard.bench.measuring import Largest, slope

DIM, HEADS = 512, 8


class Eager(nn.Module):
    """Attention as it is written on a blackboard: scores, a mask, weights, values."""

    def __init__(self, layer: Any, change: Callable[[Tensor], Tensor], weigh: Any = None) -> None:
        super().__init__()
        self.layer, self.change = layer, change
        self.weigh = weigh or (lambda s: s.softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        q = self.layer.queries(x)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in self.layer.keys(x))
        scores = self.change(q @ k.mT / q.shape[-1] ** 0.5)
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        seen = self.weigh(scores.masked_fill(mask, -torch.inf)) @ v
        return self.layer.to_out(seen.transpose(1, 2).flatten(2))


def eager_linear(layer: Any) -> Callable[[Tensor], Tensor]:
    """Causal linear attention with every prefix's memory written out by cumsum over pairs."""

    def run(x: Tensor) -> Tensor:
        q, (k, v) = layer.queries(x), layer.keys(x)
        weights = (q @ k.mT).tril()
        seen = weights @ v / weights.sum(-1, keepdim=True).clamp_min(1e-6)
        return layer.to_out(seen.transpose(1, 2).flatten(2))

    return run


def cases() -> dict[str, tuple[Any, Callable[[Tensor], Tensor] | None, dict[str, Any] | None]]:
    """Name a layer, its eager form, and what x-transformers is asked for the same."""

    def ours(name: str, **settings: Any) -> Any:
        return regard.layer(name, DIM, heads=HEADS, causal=True, **settings)

    same = lambda s: s  # noqa: E731
    mha, gqa, mqa = ours("mha"), ours("gqa", kv_heads=2), ours("mqa")
    window = ours("mha", support=regard.Window(256))
    capped = ours("mha", score=regard.Dot() >> regard.SoftCap(50.0))
    sigmoid = ours("sigmoid_attention", length=2048, qk_norm=None)
    alibi = ours("mha", position="alibi")
    linear, selective = ours("linear"), ours("selective_attention")
    talking = ours("talking_heads")
    apart = lambda n: torch.arange(n)[:, None] - torch.arange(n)  # noqa: E731

    def fade(s: Tensor) -> Tensor:
        return s - alibi.position.slopes[:, None, None] * apart(s.shape[-1])

    def near_only(s: Tensor) -> Tensor:
        return s.masked_fill(apart(s.shape[-1]) >= 256, -torch.inf)

    def votes(s: Tensor) -> Tensor:
        cast = s[:, :1].relu().tril(-1)
        cast[..., 0] = 0
        return s - (cast.cumsum(2) - cast)

    return {
        "multi-head": (mha, Eager(mha, same), {"flash": True}),
        "grouped-query": (gqa, Eager(gqa, same), {"flash": True, "kv_heads": 2}),
        "multi-query": (mqa, Eager(mqa, same), {"flash": True, "one_kv_head": True}),
        "window of 256": (window, Eager(window, near_only), {"max_attend_past": 256}),
        "ALiBi": (alibi, Eager(alibi, fade), None),
        "soft cap": (
            capped, Eager(capped, lambda s: 50 * torch.tanh(s / 50)), {"softclamp_logits": True}
        ),
        "sigmoid": (
            sigmoid, Eager(sigmoid, lambda s: s - math.log(2048), torch.sigmoid), {"sigmoid": True}
        ),
        "talking heads": (
            talking, None, {"pre_talking_heads": True, "post_talking_heads": True}
        ),
        "selective": (selective, Eager(selective, votes), {"selective": True}),
        "linear": (linear, eager_linear(linear), None),
    }  # fmt: skip


def peer(asked: dict[str, Any] | None) -> Any:
    """Make x-transformers' attention, where it is installed and has the mechanism."""
    if asked is None or importlib.util.find_spec("x_transformers") is None:
        return None
    from x_transformers.x_transformers import Attention

    return Attention(dim=DIM, heads=HEADS, dim_head=DIM // HEADS, causal=True, **asked).eval()


def first(x: Any) -> Tensor:
    """Take the output of a layer that may give more."""
    return x[0] if isinstance(x, tuple) else x


def side_by_side(n: int, rounds: int) -> list[dict[str, Any]]:
    """Time forward, and forward with backward, of each case; decoding of ours beside the whole."""
    rows = []
    for name, (layer, eager, asked) in cases().items():
        layer.eval()
        others = {"x-transformers": peer(asked), "eager": eager}
        calls = {k: f for k, f in others.items() if f is not None} | {"regard": layer}
        x = torch.randn(1, n, DIM)

        def forward(call: Any, x: Tensor = x) -> Callable[[], object]:
            def run() -> object:
                with torch.no_grad():
                    return first(call(x))

            return run

        def backward(call: Any, x: Tensor = x) -> Callable[[], object]:
            leaf = x.clone().requires_grad_()
            return lambda: first(call(leaf)).sum().backward()

        for kind, make in (("forward", forward), ("with backward", backward)):
            timed = {k: make(f) for k, f in calls.items()}
            rows += compare(f"{name}, {n:,} tokens, {kind}", timed, rounds)
        if name in ("multi-head", "grouped-query", "multi-query"):
            rows += decoding(name, layer, calls.get("x-transformers"), n, rounds)
    return rows


def decoding(name: str, layer: Any, other: Any, n: int, rounds: int) -> list[dict[str, Any]]:
    """Time 32 further tokens, one by one, after n."""
    x, one = torch.randn(1, n, DIM), torch.randn(1, 1, DIM)

    def ours() -> None:
        memory = layer.memory()
        with torch.no_grad():
            layer(x, memory=memory)
            for _ in range(32):
                layer(one, memory=memory)

    def plain() -> None:
        with torch.no_grad():
            k, v = layer.keys(x)
            F.scaled_dot_product_attention(layer.queries(x), k, v, is_causal=True, enable_gqa=True)
            for _ in range(32):
                more = layer.keys(one)
                k, v = torch.cat((k, more[0]), 2), torch.cat((v, more[1]), 2)
                q = layer.queries(one)
                seen = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
                layer.to_out(seen.transpose(1, 2).flatten(2))

    calls: dict[str, Callable[[], object]] = {"eager with concatenation": plain, "regard": ours}
    if other is not None:

        def theirs() -> None:
            with torch.no_grad():
                _, kept = other(x, return_intermediates=True)
                for _ in range(32):
                    _, kept = other(one, cache=kept, return_intermediates=True)

        calls = {"x-transformers": theirs, **calls}
    return compare(f"{name}, {n:,} tokens and 32 more, decoding", calls, rounds)


def growth(lengths: list[int]) -> list[dict[str, Any]]:
    """Fit how time and the largest tensor of each linear layer grow."""
    rows = []
    for entry in regard.layers.list():
        kind = entry.kind
        if not (entry.can.linear and entry.can.any_length):
            continue
        torch.manual_seed(0)
        causal = {"causal": True} if entry.can.causal else {}
        layer = kind(**{**kind.tiny, **causal}).eval()
        if layer.crosses or (not entry.can.causal and not entry.can.bidirectional):
            continue
        times, sizes = [], []
        for n in lengths:
            x = torch.randn(1, n, layer.dim)
            took = []
            with torch.no_grad():
                layer(x[:, :64])
                for _ in range(3):
                    start = time.process_time()
                    layer(x)
                    took.append(time.process_time() - start)
                with Largest() as seen:
                    layer(x)
            times.append(min(took))
            sizes.append(seen.bytes)
        held = None
        if entry.can.constant_memory and entry.can.decode and layer.causal:
            memory = layer.memory()
            held_bytes = []
            with torch.no_grad():
                for _ in range(128):  # 8,192 tokens: windows are full long before the half
                    layer(torch.randn(1, 64, layer.dim), memory=memory)
                    held_bytes.append(memory.nbytes)
            # What is kept of routed tokens goes up and down a little; what grows has doubled.
            held = max(held_bytes[64:]) <= 1.1 * max(held_bytes[:64])
        row = {
            "layer": entry.name,
            "time exponent": round(slope(lengths, times), 3),
            "memory exponent": round(slope(lengths, sizes), 3),
            "seconds at the longest": round(times[-1], 4),
            "decoding memory constant": held,
        }
        rows.append(row)
        print("  ".join(f"{k}: {v}" for k, v in row.items()), flush=True)
    return rows


def main() -> None:
    """Time, print, and save where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", metavar="NAME")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    grown = growth([1024, 2048, 4096, 8192, 16384, 32768])
    rows = side_by_side(asked.tokens, asked.rounds)
    if asked.save:
        save(asked.save, rows, tokens=asked.tokens, growth=grown, dim=DIM, heads=HEADS)


if __name__ == "__main__":
    main()
