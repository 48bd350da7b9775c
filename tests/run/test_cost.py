"""What executors count is what PyTorch's own counter sees at the kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import regard
from regard.core.call import Call
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot
from regard.core.support import Causal, PerHead, Sinks, Tiles, Window
from regard.core.weigh import Sigmoid
from regard.run.counting import counted
from regard.run.plan import EXECUTORS
from regard.run.runner import run
from tests.run.test_keys import FORMS, RULES, B, D, H

WITHIN = 0.02


@cache
def formulas() -> None:
    """Teach PyTorch's counter the products that it leaves out, once."""
    aten = torch.ops.aten
    register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu)(cpu_kernel)
    register_flop_formula([aten._embedding_bag, aten._embedding_bag_forward_only])(bags)


def bags(
    rows: Any, slots: Any, starts: Any, scaled: bool = False, mode: int = 0, sparse: bool = False,
    weights: Any = None, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Products of weighted sums of rows; without weights rows are copied."""
    return 0 if weights is None else int(2 * slots[0] * rows[1])


def cpu_kernel(q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    """Products of the kernel of the CPU, which PyTorch's counter leaves out.

    A causal one scores the pairs at or below the diagonal.
    """
    (b, h, n, d), m, e = q, k[2], v[3]
    below = min(n, m)
    pairs = below * (below + 1) // 2 + (n - below) * m if causal else n * m
    return int(2 * b * h * pairs * (d + e))


def seen_by_pytorch(call: Call, want: tuple[str, ...], executor: str) -> tuple[float, float]:
    """FLOPs that an executor counts, and those that PyTorch's counter finds at its kernels."""
    formulas()
    run(call, want, executor)  # plans, folds and tile maps are made once
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        cost = run(call, want, executor).cost
    return cost.flops, float(counter.get_total_flops())


def same(call: Call, want: tuple[str, ...], executor: str) -> None:
    ours, theirs = seen_by_pytorch(call, want, executor)
    assert theirs > 0
    assert abs(ours - theirs) <= WITHIN * theirs, (executor, call.rule, ours, theirs)


N, M = 128, 192
SUPPORTS = {
    "all": Rule(),
    "causal": Rule(Causal()),
    "window": Rule(Causal() & (Window(40) | Sinks(4))),
    "tiles": Rule(Tiles(torch.eye(4, 6, dtype=torch.bool)[None, None], 32)),
    "slopes": Rule(Causal() & Window(40), Dot() + Alibi.for_heads(H)),
    "heads": Rule(PerHead((Causal(), Causal(), Window(9, 9), Window(9, 9)))),
    "alone": Rule(Causal(), weigh=Sigmoid()),
}


@pytest.mark.parametrize("rule", SUPPORTS)
@pytest.mark.parametrize("wide", [False, True])
def test_counted_flops_are_those_at_the_kernels(rule: str, wide: bool, seed: int) -> None:
    q, k = torch.randn(B, H, N, D), torch.randn(B, 2, M, D)
    v = torch.randn(B, 2, M, 2 * D) if wide else k
    call = Call.of(q, k, v, SUPPORTS[rule])
    tried = 0
    for name, executor in EXECUTORS.items():
        # Compiled kernels are no operators that a counter sees.
        if "dense" in executor.reads and name not in ("flex", "triton") and executor.can(call):
            same(call, ("out",), name)
            same(call, ("lse",), name)
            tried += 1
    assert tried >= 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["all", "causal", "cap"])
def test_a_decoded_token_is_counted_for_every_form(form: str, rule: str, seed: int) -> None:
    keys = FORMS[form](160)
    call = Call(torch.randn(B, H, 1, D), keys, RULES[rule])
    ran = run(call)
    same(call, ("out",), ran.executor)
    read = keys.count if keys.form == "ragged" else keys.m
    assert ran.cost.pairs == pytest.approx(B * H * read, rel=WITHIN)


def test_slots_cost_what_they_name(seed: int) -> None:
    k = torch.randn(B, 2, 400, D)
    slots = torch.rand(B, 2, 400).argsort(-1)[..., :100]
    part, whole = (run(Call(torch.randn(B, H, 1, D), keys)).cost
                   for keys in (Dense(k, k).take(slots), Dense(k, k)))  # fmt: skip
    assert part.flops == whole.flops / 4
    assert part.pairs == B * H * 100


def test_looking_is_counted_and_is_no_cost_of_attention(seed: int) -> None:
    q = torch.randn(1, 2, 64, D)
    plain, before = run(Call.of(q, q, q)), counted()
    looked = run(Call.of(q, q, q), ("out", "entropy"))
    assert looked.cost == plain.cost
    assert counted().less(before).pairs == 2 * plain.cost.pairs


def test_a_window_costs_less_than_all(seed: int) -> None:
    q = torch.randn(1, 2, 1024, D)
    near = run(Call.of(q, q, q, Rule(Causal() & Window(64)))).cost
    assert near.flops < 0.3 * run(Call.of(q, q, q, Rule(Causal()))).cost.flops
    out = regard.attend(q, q, q)
    assert out.shape == q.shape
