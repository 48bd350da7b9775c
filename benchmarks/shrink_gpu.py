"""Time shrinking on a GPU: prompts of chosen tiles, selected decoding, packed memories.

    python benchmarks/shrink_gpu.py --save shrink-gpu          # a CUDA device, some minutes
    python benchmarks/shrink_gpu.py --device cpu --tokens 512  # whether it runs; measures nothing

bf16, 32 query heads on 8 key heads of 128. Choosing counts, but where it is said to come before.
What is timed is first held to what the same call gives by another way. Steps are also replayed from
a CUDA graph between events: the device's own time, without the host between launches. Nothing here
has been measured yet: without a CUDA device it says so and stops.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from gpu import on_device
from shrink_speed import begun
from side_by_side import compare, save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.memories import Kept, Quantized
from regard.memories.summaries import Bounds
from regard.models.site import Site
from regard.policies.base import Step
from regard.run.plan import EXECUTORS
from regard.run.runner import run as run_call

HEADS, KEY_HEADS, SIZE = 32, 8, 128
WHERE = Site(0, "self", "layer", HEADS, KEY_HEADS, SIZE, causal=True)
# Layers that take turns over selected keys, so that no step finds them in the cache of the device.
LAYERS = 4
Calls = dict[str, Callable[[], Tensor]]
Rows = list[dict[str, Any]]


def make(device: str, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def need_same(got: Tensor, want: Tensor) -> None:
    """Raise unless two ways differ by less than 5% of what they give, in bf16.

    Over many random keys outputs are small: no absolute difference would tell.
    """
    off = float((got.float() - want.float()).norm() / want.float().norm())
    if not off < 0.05:
        raise RuntimeError(f"two ways of the same call differ by {off:.1%}")


def timed(case: str, calls: Calls, rounds: int, device: str, replayed: bool = True) -> Rows:
    """Time what runs; what does not is a row that says why."""
    found, failed = dict(calls), []
    for name, call in calls.items():
        try:
            call()
        except Exception as e:  # the others are still to be timed
            print(f"  {name}: {type(e).__name__}: {e}")
            failed.append({"case": case, "call": name, "error": f"{type(e).__name__}: {e}"[:500]})
            del found[name]
    rows = compare(case, found, rounds) if found else []
    if replayed and device == "cuda":
        on_device(rows, found, rounds)
    return rows + failed


def dense(which: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """Dense causal attention by one backend; heads are expanded before where it wants that."""

    def run(k: Tensor = k, v: Tensor = v) -> Tensor:
        if q.device.type == "cpu":
            return sdpa(q, k, v, is_causal=True, enable_gqa=k.shape[1] != HEADS)
        with sdpa_kernel(which):
            return sdpa(q, k, v, is_causal=True, enable_gqa=k.shape[1] != HEADS)

    try:
        run()
    except RuntimeError:
        whole = [expand_heads(x, HEADS) for x in (k, v)]
        return lambda: run(*whole)
    return run


def prompts(n: int, keep: float, rounds: int, device: str, block: int = 128) -> Rows:
    """One layer's attention over a prompt, the choosing of tiles included."""
    q, k, v = (make(device, 1, x, n, SIZE) for x in (HEADS, KEY_HEADS, KEY_HEADS))
    calls: Calls = {
        "cuDNN, dense causal": dense(SDPBackend.CUDNN_ATTENTION, q, k, v),
        "Flash, dense causal": dense(SDPBackend.FLASH_ATTENTION, q, k, v),
    }
    said: dict[str, dict[str, Any]] = {}
    for name in ("a_shape", "vertical_slash", "block_sparse", "hip"):
        policy = begun(name, keep, WHERE, block=block)

        def selected(m: int = n, policy: Any = policy) -> tuple[Call, Step]:
            call = Call.of(q[:, :, :m], k[:, :, :m], v[:, :, :m], Rule(Causal()), site=WHERE)
            step = Step(call, m, torch.tensor([m], device=device))
            return policy.select(step), step

        def run(selected: Any = selected) -> Tensor:
            return run_call(selected()[0]).out

        title = f"{name}, {keep:.0%} of pairs"
        calls[title] = run
        try:
            small = selected(min(n, 4096))[0]
            need_same(run_call(small).out, EXECUTORS["chunked"].run(small).out)
            call, _ = selected()
            ran = run_call(call)
            share = ran.cost.pairs / (call.b * call.h) / (n * (n + 1) / 2)
            name = ran.executor
            said[title] = {"share_of_pairs": round(share, 4), "executor": name}
        except Exception as e:  # wrong or impossible, so not timed
            message = f"{type(e).__name__}: {e}"

            def run(message: str = message) -> Tensor:
                raise RuntimeError(message)

            calls[title] = run
    rows = timed(f"prompt of {n:,} tokens", calls, rounds, device, replayed=False)
    return [row | said.get(row["call"], {}) for row in rows]


def selected(b: int, n: int, keep: float, rounds: int, device: str) -> Rows:
    """A query over some of n keys, beside a copy that moves as many bytes."""
    pairs = [(make(device, b, KEY_HEADS, n, SIZE), make(device, b, KEY_HEADS, n, SIZE))
             for _ in range(LAYERS)]  # fmt: skip
    q, rule = make(device, b, HEADS, 1, SIZE), Rule(Everything())
    steps = [Call.of(q, k, v, rule, site=WHERE) for k, v in pairs]
    policy = begun("quest", keep, WHERE)
    count = int(keep * n) // policy.page * policy.page
    each = (b, KEY_HEADS)
    alone = torch.rand(*each, n, device=device).topk(count).indices.sort(-1).values
    pages = torch.rand(*each, n // policy.page, device=device).topk(count // policy.page).indices
    inside = torch.arange(policy.page, device=device)
    pages = (pages.sort(-1).values[..., None] * policy.page + inside).flatten(2)
    indexes = []
    for call in steps:
        indexes.append(Bounds(policy.page))
        indexes[-1].append(call.k)

    def quest(call: Call, index: Bounds) -> Tensor:
        step = Step(call, n, torch.full((b,), n, device=device))
        return over_slots(call, policy.quickly(step, index, count))

    def over_slots(call: Call, slots: Tensor, executor: str | None = None) -> Tensor:
        return run_call(call.replace(keys=call.keys.take(slots, full=True)), executor=executor).out

    def in_turn(step: Callable[..., Tensor], *lists: list[Any]) -> Callable[[], Tensor]:
        return lambda: [step(*given) for given in zip(*lists, strict=True)][-1]

    for slots in (alone, pages):
        need_same(*(over_slots(steps[0], slots, x) for x in (None, "reference")))
    keys = 2 * alone.numel() * SIZE * q.element_size()
    moved = keys + alone.numel() * alone.element_size()
    bounds = indexes[0].read().numel() * q.element_size()
    copies = [make(device, 2, moved // 2 // q.element_size()) for _ in range(LAYERS)]
    calls: Calls = {
        "a copy that moves as many bytes": in_turn(lambda x: x[0].copy_(x[1]), copies),
        "keys chosen before": in_turn(lambda call: over_slots(call, alone), steps),
        "pages chosen before": in_turn(lambda call: over_slots(call, pages), steps),
        "quest": in_turn(quest, steps, indexes),
        "SDPA over all keys": in_turn(
            lambda call: sdpa(call.q, call.k, call.v, enable_gqa=True), steps
        ),
    }
    said = f"{LAYERS} steps over {keep:.0%} of {n:,} keys, batch {b}"
    rows = timed(said, calls, rounds, device)
    whole = 2 * pairs[0][0].numel() * q.element_size()
    must = {"quest": moved + bounds, "SDPA over all keys": whole}
    for row in rows:
        told(row, LAYERS * must.get(row["call"], moved))
    return rows


def packed(b: int, n: int, rounds: int, device: str, piece: int = 4096) -> Rows:
    """A query over a memory of few bits, beside bf16 of as many tokens."""
    q, k, v = (make(device, b, x, m, SIZE) for x, m in ((HEADS, 1), (KEY_HEADS, n), (KEY_HEADS, n)))
    kernel = Call.of(q, k, v, Rule(Causal(), offset=n - 1))
    calls: Calls = {"bf16, SDPA": lambda: sdpa(q, k, v, enable_gqa=True)}
    if device == "cuda":
        calls["bf16, regard's kernel"] = lambda: EXECUTORS["triton"].run(kernel).out
    must = {}
    for bits in (8, 4, 2):
        memory = Kept(
            lambda bits=bits: Quantized(bits, "channel"), lambda bits=bits: Quantized(bits, "token")
        )
        for first in range(0, n, piece):
            memory.extend(k[:, :, first : first + piece], v[:, :, first : first + piece])
            memory.settle()

        def step(memory: Kept = memory) -> Tensor:
            found = memory.attend(q, SIZE**-0.5)
            assert found is not None
            return found.out

        want = sdpa(q, *(x.to(q.dtype) for x in memory.read().tensors()), enable_gqa=True)
        need_same(step(), want)
        calls[f"{bits} bits"], must[f"{bits} bits"] = step, memory.nbytes
    rows = timed(f"a step over {n:,} tokens, batch {b}", calls, rounds, device)
    for row in rows:
        told(row, must.get(row["call"], 2 * k.numel() * k.element_size()))
    return rows


def time_of(row: dict[str, Any]) -> float:
    """Milliseconds on the device, or with the host where there are no others."""
    return float(row.get("device_ms", row.get("median_ms", float("inf"))))


def told(row: dict[str, Any], moved: int) -> None:
    """Add the bytes that must move, and how many move in a second."""
    if "error" not in row:
        row["bytes"] = moved
        row["terabytes_a_second"] = round(moved / time_of(row) / 1e9, 3)
        print(f"  {row['call']}: {moved:,} bytes, {row['terabytes_a_second']} TB/s")


def claims(rows: Rows) -> Rows:
    """Hold the rows to what must hold: a prompt 6x, selected steps 1.3x, 4 bits against bf16."""
    found: Rows = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = {row["call"]: time_of(row) for row in rows if row["case"] == case}
        first = next(iter(own.values()))
        if case.startswith("prompt"):
            pairs = [(x, "at least", 6.0, first / t) for x, t in own.items() if "of pairs" in x]
        elif "4 bits" in own:
            best = min(t for x, t in own.items() if x.startswith("bf16"))
            pairs = [("4 bits", "above", 1.0, best / own["4 bits"])]
        else:
            pairs = [(x, "at most", 1.3, own[x] / first) for x in own if "before" in x]
        for call, how, wanted, ratio in pairs:
            holds = ratio <= wanted if how == "at most" else ratio >= wanted
            found.append({
                "case": case, "call": call, "peer": next(iter(own)), "wanted": f"{how} {wanted}",
                "ratio": round(ratio, 3), "holds": bool(holds),
            })  # fmt: skip
            print(f"{'holds' if holds else 'FAILS'}: {case}: {call}: {ratio:.2f}, {how} {wanted}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=("prompts", "selected", "packed"))
    parser.add_argument("--block", type=int, default=128, help="side of the tiles of prompts")
    parser.add_argument("--save", help="name of the file in benchmarks/results")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return
    n, keep, rounds, device = given.tokens, given.keep, given.rounds, given.device
    torch.manual_seed(0)
    rows: Rows = []
    with torch.no_grad():
        if given.only in (None, "packed"):
            for b in (1, 8):
                rows += packed(b, n, rounds, device)
        if given.only in (None, "selected"):
            for b in (1, 4):
                rows += selected(b, n, keep, rounds, device)
        if given.only in (None, "prompts"):
            rows += prompts(n, keep, rounds, device, given.block)
    found = claims(rows)
    if given.save:
        save(
            given.save, rows, tokens=n, keep=keep, heads=HEADS, key_heads=KEY_HEADS, size=SIZE,
            dtype="bfloat16", block=given.block, triton=version("triton"), claims=found,
        )  # fmt: skip


if __name__ == "__main__":
    main()
