"""Speed on a CPU at long prompts: sparse prompts, selected decoding, and a ring's steps.

    python benchmarks/shrink_speed.py --save shrink-cpu      # a few minutes

Each policy's own choosing counts. Dense is SDPA, as models call it.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from side_by_side import compare, save
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.memories import Kept, Ring
from regard.models.cache import KeyLayer
from regard.models.site import Site, Sites
from regard.policies import Budget, policy
from regard.policies.base import Step
from regard.run.runner import run as run_call

HEADS, SIZE = 8, 64
# Layers that take turns, so that no step finds its keys in the cache of the processor.
LAYERS = 4


def over_slots(call: Call, slots: Tensor) -> Tensor:
    """Attend to the keys of some slots alone."""
    return run_call(call.replace(keys=call.keys.take(slots, full=True))).out


def site(heads: int = HEADS, key_heads: int = HEADS) -> Site:
    return Site(0, "self", "layer", heads, key_heads, SIZE, causal=True)


def begun(name: str, keep: float, where: Site | None = None, **settings: Any) -> Any:
    made = policy(name, **settings)
    made.begin(torch.nn.Linear(1, 1), Sites([where or site()]), Budget.of(keep))
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
            call = Call.of(q, k, v, Rule(Causal()), site=site())
            step = Step(call, n, torch.tensor([n]))
            return run_call(made.select(step)).out

        calls[f"{name}, {keep:.0%} of pairs"] = run
    return compare(f"prompt of {n:,} tokens, {HEADS} heads of {SIZE}", calls, rounds)


def decoding(n: int, keep: float, rounds: int, heads: int) -> list[dict[str, Any]]:
    """One layer's attention of a single query over n keys; the choosing of keys included."""
    torch.manual_seed(0)
    where = site(heads)
    pairs = [torch.randn(2, 1, HEADS, n, SIZE) for _ in range(LAYERS)]
    q, new = torch.randn(1, heads, 1, SIZE), torch.randn(1, HEADS, 1, SIZE)
    rule = Rule(Everything())
    grouped = heads != HEADS

    def in_turn(step: Any) -> Any:
        turn = itertools.cycle(range(LAYERS))
        return lambda: step(next(turn))

    calls: dict[str, Any] = {
        "SDPA over all keys": in_turn(lambda i: sdpa(q, *pairs[i], enable_gqa=grouped))
    }
    count = int(keep * n)
    drawn = [torch.stack([torch.randperm(n)[:count].sort().values for _ in range(HEADS)])[None]
             for _ in range(LAYERS)]  # fmt: skip
    calls[f"{keep:.0%} of the keys, chosen before"] = in_turn(
        lambda i: over_slots(Call.of(q, *pairs[i], rule, site=where), drawn[i])
    )
    for name in ("quest", "double_sparsity"):
        made = begun(name, keep, where)
        layers = []
        for k, v in pairs:
            layers.append(KeyLayer(Owner(), 0, []))
            layers[-1].update(k, v)

        def run(i: int, made: Any = made, layers: Any = layers) -> Tensor:
            layer = layers[i]
            layer.update(new, new)
            k, v = layer.memory.read().tensors()
            seen = layer.memory.seen
            step = Step(Call.of(q, k, v, rule, site=where), seen, layer.real, layer)
            call = made.select(step)
            return over_slots(call, step.slots)

        for i in range(LAYERS):
            run(i)
        calls[f"{name}, {keep:.0%} of the keys"] = in_turn(run)
    said = f"a step over {n:,} keys, {heads} query heads of {SIZE} on {HEADS} key heads"
    return compare(said, calls, rounds, times=20)


def ring(lengths: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A step of sinks and a window of 1,024 after prompts of several lengths."""
    calls = {}
    x, q = torch.randn(2, 1, HEADS, 1, SIZE)
    for n in lengths:
        memory = Ring(1024, 4)
        k = torch.randn(1, HEADS, n, SIZE)
        memory.extend(k, k)
        memory.settle()

        def step(memory: Ring = memory) -> Tensor:
            memory.extend(x, x)
            k, v = memory.read().tensors()
            return sdpa(q, k, v)

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
        for heads in (HEADS, 4 * HEADS):
            rows += decoding(arguments.tokens, arguments.keep, arguments.rounds, heads)
        rows += ring((2048, 8192, 32768), arguments.rounds)
    if arguments.save:
        save(arguments.save, rows, tokens=arguments.tokens, keep=arguments.keep)


if __name__ == "__main__":
    main()
