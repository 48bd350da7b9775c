"""Speed on a CPU at long prompts: sparse prompts, selected decoding, and a ring's steps.

    python benchmarks/shrink_speed.py --save shrink-cpu      # a few minutes

Each policy's own choosing counts. Dense is SDPA, as models call it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from side_by_side import compare, save
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.core.call import Call
from regard.core.heads import take_keys
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.memories import Kept, Ring
from regard.models.cache import KeyLayer
from regard.models.engine import attended
from regard.models.site import Site, Sites
from regard.policies import Budget, policy
from regard.policies.base import Step

HEADS, KEY_HEADS, SIZE = 8, 8, 64


def site() -> Site:
    return Site(0, "self", "layer", HEADS, KEY_HEADS, SIZE, causal=True)


def begun(name: str, keep: float, **settings: Any) -> Any:
    made = policy(name, **settings)
    made.begin(torch.nn.Linear(1, 1), Sites([site()]), Budget.of(keep))
    return made


class Owner:
    """What a layer of a cache asks of the stage that made it."""

    active = True

    def new_memory(self, layer: Any) -> Kept:
        return Kept()


def prompts(n: int, keep: float, rounds: int) -> list[dict[str, Any]]:
    """One layer's attention over a prompt, the choosing of tiles included."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, n, SIZE)
    calls: dict[str, Any] = {"SDPA causal": lambda: sdpa(q, k, v, is_causal=True)}
    for name, settings in (
        ("a_shape", {"block": 128}), ("vertical_slash", {"block": 128}),
        ("block_sparse", {"block": 128}), ("hip", {"block": 128}),
    ):  # fmt: skip
        made = begun(name, keep, **settings)

        def run(made: Any = made) -> Tensor:
            call = Call(q, k, v, Rule(Causal()), site=site())
            step = Step(site(), call, n, torch.tensor([n]))
            return attended(made.select(step))

        calls[f"{name}, {keep:.0%} of pairs"] = run
    return compare(f"prompt of {n:,} tokens, {HEADS} heads of {SIZE}", calls, rounds)


def decoding(n: int, keep: float, rounds: int) -> list[dict[str, Any]]:
    """One layer's attention of a single query over n keys; the choosing of keys included."""
    torch.manual_seed(0)
    k, v = torch.randn(2, 1, KEY_HEADS, n, SIZE)
    q = torch.randn(1, HEADS, 1, SIZE)
    calls: dict[str, Any] = {"SDPA over all keys": lambda: sdpa(q, k, v)}
    index = torch.stack([torch.randperm(n)[: int(keep * n)].sort().values for _ in range(8)])[None]

    def chosen() -> Tensor:
        return sdpa(q, take_keys(k, index), take_keys(v, index))

    calls[f"{keep:.0%} of the keys, chosen before"] = chosen
    for name in ("quest", "double_sparsity"):
        made = begun(name, keep)
        layer = KeyLayer(Owner(), 0, [])
        layer.update(k, v)
        new = torch.randn(1, KEY_HEADS, 1, SIZE)

        def run(made: Any = made, layer: Any = layer, new: Tensor = new) -> Tensor:
            layer.update(new, new)
            read, seen = layer.memory.read(), layer.memory.seen
            call = Call(q, read.k, read.v, Rule(Everything()), site=site())
            return attended(made.select(Step(site(), call, seen, torch.tensor([seen]), layer)))

        run()
        calls[f"{name}, {keep:.0%} of the keys"] = run
    return compare(f"a step over {n:,} keys", calls, rounds, times=20)


def ring(lengths: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A step of sinks and a window of 1,024 after prompts of several lengths."""
    calls = {}
    x, q = torch.randn(1, KEY_HEADS, 1, SIZE), torch.randn(1, HEADS, 1, SIZE)
    for n in lengths:
        memory = Ring(1024, 4)
        k = torch.randn(1, KEY_HEADS, n, SIZE)
        memory.extend(k, k)
        memory.settle()

        def step(memory: Ring = memory) -> Tensor:
            memory.extend(x, x)
            read = memory.read()
            return sdpa(q, read.k, read.v)

        calls[f"after {n:,} tokens"] = step
    return compare("sinks and a window of 1,024: one step", calls, rounds, times=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    with torch.no_grad():
        rows = prompts(arguments.tokens, arguments.keep, arguments.rounds)
        rows += decoding(arguments.tokens, arguments.keep, arguments.rounds)
        rows += ring((2048, 8192, 32768), arguments.rounds)
    if arguments.save:
        save(arguments.save, rows, tokens=arguments.tokens, keep=arguments.keep)


if __name__ == "__main__":
    main()
