"""Laws of numbers, over every executor and every part of a rule; both are found by registration."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import regard
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Dot, KeyWeights, ScoreStep, SoftCap, Temperature
from regard.core.support import Causal, Everything, Padding, PerHead, Sinks, Where, Window
from regard.run.plan import EXECUTORS
from tests import parts
from tests.parts import B, D, G, H, N
from tests.strategies import calls

# Slow to compile or to interpret, and asked about a few rules only.
SLOW = ("flex", "triton")
QUICK = [name for name in EXECUTORS if name not in SLOW]


def inputs(dtype: torch.dtype = torch.float64, grad: bool = True) -> list[Tensor]:
    shapes = ((B, H, N, D), (B, G, N, D), (B, G, N, D))
    return [torch.randn(*s, dtype=torch.float64).to(dtype).requires_grad_(grad) for s in shapes]


def run(executor: str | None, call: Call) -> list[Tensor]:
    """Output, lse, and gradients of q, k and v."""
    if executor is None:
        made = regard.partial(call.q, call.k, call.v, call.rule)
    else:
        made = EXECUTORS[executor].run(call)
    found = [made.out] if made.lse is None else [made.out, made.lse]
    return found + pulled(call, found) if call.needs_grad else found


def pulled(call: Call, found: list[Tensor]) -> list[Tensor]:
    """Gradients of q, k and v, of queries that have numbers."""
    out, lse = found[0], found[1] if len(found) > 1 else None
    pull = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    loss = (out * pull).nan_to_num(0.0, 0.0, 0.0).sum()
    if lse is not None:
        loss = loss + (lse * pull[..., 0]).nan_to_num(0.0, 0.0, 0.0).sum()
    grads = torch.autograd.grad(loss, (call.q, call.k, call.v), allow_unused=True)
    return [torch.zeros_like(call.q) if g is None else g for g in grads]


def able(call: Call, among: list[str] = QUICK) -> Iterator[str]:
    return (name for name in among if EXECUTORS[name].can(call))


# Masked keys contribute exactly nothing

RULES: dict[str, Callable[[], Rule]] = {
    "causal": lambda: Rule(Causal()),
    "causal, late": lambda: Rule(Causal(), offset=3),
    "window": lambda: Rule(Causal() & Window(3)),
    "sinks": lambda: Rule(Causal() & (Window(3) | Sinks(1))),
    "padding": lambda: Rule(Padding.from_lengths([5, 9], N)),
    "heads": lambda: Rule(PerHead([Causal(), Causal(), Window(2), Window(2)])),
    "removed by weight": lambda: Rule(
        score=Dot() + KeyWeights(torch.zeros(1, 1, N).index_fill(2, torch.tensor([7]), -torch.inf))
    ),
    "capped window": lambda: Rule(Causal() & Window(3), Dot() >> SoftCap(3.0)),
    "sigmoid": lambda: Rule(Causal() & Window(3), weigh=regard.Sigmoid()),
    "signed": lambda: Rule(Causal(), weigh=regard.Signed()),
    "sink": lambda: Rule(Causal() & Window(3), weigh=regard.Softmax(plus_one=True)),
}


def contains(executor: str | None, call: Call, bad: float, key: int, tolerance: float) -> None:
    """A key that holds no number changes nothing for those that may not attend to it."""
    q, k, v = call.q, call.k, call.v
    with torch.no_grad():
        k[0, :, key, 1], v[0, :, key] = bad, bad
    spoilt = run(executor, call)
    with torch.no_grad():
        k[0, :, key], v[0, :, key] = 0.3, -0.2
    removed = call.rule.score.bind(q, q)(torch.zeros(B, H, N, N).to(q), call.at()) == -torch.inf
    met = (call.allowed(call.at()).expand(B, H, N, N) & ~removed)[..., key]
    met = met & (torch.arange(B) == 0).view(-1, 1, 1)
    clean = run(executor, call)
    assert not spoilt[0][met].isfinite().any()
    for x, y in zip(spoilt[: len(spoilt) - 3 * call.needs_grad], clean, strict=False):
        torch.testing.assert_close(x[~met], y[~met], rtol=tolerance, atol=tolerance)
    if call.needs_grad:
        assert all(g.isfinite().all() for g in spoilt[-3:])
        # Queries that may attend to it have no gradient; those of the others are what they were.
        torch.testing.assert_close(
            spoilt[-3][~met], clean[-3][~met], rtol=tolerance, atol=tolerance
        )
        assert (spoilt[-3][met] == 0).all()
        assert (spoilt[-2][0, :, key] == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("executor", [*QUICK, None])
def test_masked_keys_contribute_nothing(executor, rule, bad, seed):
    call = Call.of(*inputs(), RULES[rule]())
    if executor is not None and not EXECUTORS[executor].can(call):
        pytest.skip(EXECUTORS[executor].can(call).reason)
    contains(executor, call, bad, 7, 1e-12)


@pytest.mark.parametrize("executor", SLOW)
def test_masked_keys_contribute_nothing_to_compiled_kernels(executor, seed):
    few = slice(None) if executor == "flex" else slice(0, 4)
    q, k, v = inputs(torch.float32, grad=False)
    call = Call.of(
        q[:, :, few], k, v, Rule(Causal() & Window(3), offset=0 if executor == "flex" else 8)
    )
    if not EXECUTORS[executor].can(call):
        pytest.skip(EXECUTORS[executor].can(call).reason)
    if executor == "flex":
        contains(executor, call, torch.nan, 7, 1e-6)
        return
    k[:, :, 2], v[:, :, 2] = torch.nan, torch.nan
    assert EXECUTORS[executor].run(call).out.isfinite().all()


@given(data=st.data())
def test_masked_keys_contribute_nothing_to_generated_calls(data):
    call = data.draw(calls(most=24))
    met = call.allowed(call.at()).expand(call.b, call.h, call.n, call.m)
    unseen = ~met.any(2).view(call.b, call.g, -1, call.m).any(2)
    assume(unseen.any() and call.m > 1)
    spoil = unseen[..., None]
    bad = call.replace(
        k=call.k.detach().masked_fill(spoil, torch.nan).requires_grad_(),
        v=call.v.detach().masked_fill(spoil, torch.inf).requires_grad_(),
    )
    zero = call.replace(
        k=call.k.detach().masked_fill(spoil, 0.0).requires_grad_(),
        v=call.v.detach().masked_fill(spoil, 0.0).requires_grad_(),
    )
    for executor in able(call):
        for x, y in zip(run(executor, bad), run(executor, zero), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_surveys_contain_masked_keys_too(seed):
    q, k, v = inputs(grad=False)
    rule = Rule(Causal() & Window(3))
    want = ("entropy", "received", "tiles", "max", "distance_by_value", "received_by_value")
    clean = regard.survey(q, k, v, rule, want)
    k[0, :, -1], v[0, :, -1] = torch.nan, torch.nan
    spoilt = regard.survey(q, k, v, rule, want)
    assert torch.equal(spoilt.entropy[0, :, :-1], clean.entropy[0, :, :-1])
    assert torch.equal(spoilt.entropy[1], clean.entropy[1])
    assert torch.equal(spoilt.received_by_value[1], clean.received_by_value[1])


# A rule is what its tensors say now


def change_in_place(x: Tensor) -> None:
    with torch.no_grad():
        if x.dtype == torch.bool:
            x.copy_(x.flip(-1) | ~x.any(-1, keepdim=True))
        elif x.is_floating_point():
            x.mul_(1.5).add_(0.25)
        else:
            x.copy_((x.roll(2, -1) + 1) % (x.max() + 1))


@pytest.mark.parametrize("name", [n for n in parts.PARTS if parts.PARTS[n]().tensors()])
def test_a_change_in_place_reaches_every_executor(name, seed):
    rule, (q, k, v) = parts.rule_of(name), inputs(grad=False)
    call = Call.of(q, k, v, rule)
    before = {e: run(e, call) for e in able(call)}
    for x in {id(x): x for x in rule.tensors()}.values():
        change_in_place(x)
    want = run("reference", Call.of(q, k, v, copy.deepcopy(rule)))
    assert name == "Softmax" or any(
        (a - b).abs().max() > 1e-6 for a, b in zip(before["reference"], want, strict=True)
    )
    for executor in before:
        for x, y in zip(run(executor, call), want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    found = regard.attend(q, k, v, rule)
    part = EXECUTORS["reference"].run(Call.of(q, k, v, copy.deepcopy(rule)))
    closed = rule.weigh.apply_sink(part)
    torch.testing.assert_close(found, closed.out, rtol=1e-6, atol=1e-6)


def test_a_change_behind_a_function_reaches_every_executor(seed):
    table = torch.rand(N, N) > 0.3
    call = Call.of(*inputs(grad=False), Rule(Where(lambda b, h, i, j: table[i, j])))
    before = {e: run(e, call)[0] for e in able(call)}
    table.copy_(table.T | torch.eye(N, dtype=torch.bool))
    want = run(
        "reference", Call.of(call.q, call.k, call.v, Rule(Where(lambda b, h, i, j: table[i, j])))
    )
    for executor in before:
        torch.testing.assert_close(run(executor, call)[0], want[0])


# Heads


@pytest.mark.parametrize("name", [*parts.STEPS, *parts.SCORES, *parts.WEIGHS, *parts.SUPPORTS])
def test_groups_of_heads_keep_their_numbers(name, seed):
    """`PerHead` beside any part: groups number heads anew, and every part must be told."""
    around = parts.rule_of(name)
    mixed = PerHead([Causal(), Window(3), Causal(), Window(3)])
    rule = around.replace(support=mixed & around.support, offset=0)
    call = Call.of(*inputs(), rule)
    if not EXECUTORS["grouped"].can(call):
        pytest.skip(EXECUTORS["grouped"].can(call).reason)
    for executor in ("grouped", None):
        for x, y in zip(run(executor, call), run("reference", call), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


# What functions learn


def learning() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    weight = torch.randn(H, dtype=torch.float64, requires_grad=True)
    layer = torch.nn.Linear(1, 1).double()
    holder = functools.partial(lambda w, s, b, h, i, j: s * w[h], weight)
    space = {"weight": weight}
    doubled = weight * 2

    class Method:
        def __init__(self) -> None:
            self.weight = weight

        def change(self, s, b, h, i, j):
            return s * self.weight[h]

    return {
        "closure": (lambda s, b, h, i, j: s * weight[h], [weight]),
        "module": (lambda s, b, h, i, j: s + layer(s[..., None])[..., 0], list(layer.parameters())),
        "method": (Method().change, [weight]),
        "partial": (holder, [weight]),
        "default": (lambda s, b, h, i, j, w=weight: s * w[h], [weight]),
        "dict": (lambda s, b, h, i, j: s * space["weight"][h], [weight]),
        "of another": (lambda s, b, h, i, j: s * doubled[h], [weight]),
    }


@pytest.mark.parametrize("support", [Everything(), Causal(), Causal() & Window(3)], ids=str)
@pytest.mark.parametrize("how", learning())
def test_what_a_function_learns_gets_its_gradient(how, support, seed):
    function, weights = learning()[how]
    q, k, v = inputs(grad=False)
    rule = Rule(support, Dot() >> ScoreStep(function))
    want = torch.autograd.grad(
        EXECUTORS["reference"].run(Call.of(q, k, v, rule)).out.square().sum(),
        weights,
        retain_graph=True,
    )
    call = Call.of(q, k, v, rule)
    for executor in [*able(call), None]:
        out = regard.attend(q, k, v, rule, executor=executor)
        found = torch.autograd.grad(out.square().sum(), weights, retain_graph=True)
        torch.testing.assert_close(found, want)


# Autocast ends at the door


def _any(call: Call) -> regard.Partial:
    return regard.partial(call.q, call.k, call.v, call.rule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("executor", [*QUICK, *SLOW, None])
def test_autocast_changes_nothing(executor, dtype, seed):
    grad = executor not in SLOW
    rule = Rule(Causal() & Window(3), offset=8 if executor == "triton" else 0)
    if executor == "grouped":
        rule = Rule(PerHead([Causal(), Causal(), Window(2), Window(2)]))
    if executor in ("fused", None):
        rule = Rule(Causal())
    call = Call.of(*inputs(dtype, grad), rule)
    if executor == "triton":
        call = call.replace(q=call.q[:, :, :4])
    if executor is not None and not EXECUTORS[executor].can(call):
        pytest.skip(EXECUTORS[executor].can(call).reason)
    want = run(executor, call)
    run_one = EXECUTORS[executor].run if executor else _any
    with torch.autocast("cpu", torch.bfloat16):
        found = [x for x in run_one(call) if x is not None]
    found += pulled(call, found) if call.needs_grad else []
    for x, y in zip(found, want, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_autocast_brings_mixed_inputs_to_its_dtype(seed):
    q, k, v = inputs(torch.float32, grad=False)
    for mixed in ((q, k, v.bfloat16()), (q.bfloat16(), k, v)):
        with torch.autocast("cpu", torch.bfloat16):
            assert regard.attend(*mixed, Causal()).dtype == torch.bfloat16
            assert regard.partial(*mixed, Causal()).out.dtype == torch.bfloat16
            regard.survey(*mixed, Causal())
        with pytest.raises(regard.core.errors.DtypeError):
            regard.attend(*mixed, Causal())


# Checkpoints count what the forward saves


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", parts.PARTS)
def test_the_first_checkpointed_call_of_a_kind(name, reentrant, seed):
    rule, given = parts.rule_of(name), inputs()
    regard.run.plan._chosen.clear()
    for attend in (lambda *x: regard.attend(*x, rule), lambda *x: regard.partial(*x, rule).out):
        out = checkpoint(attend, *given, use_reentrant=reentrant)
        found = (
            torch.autograd.grad(out.square().sum(), given, allow_unused=True)
            if not reentrant
            else None
        )
        if reentrant:
            for x in given:
                x.grad = None
            out.square().sum().backward()
            found = [x.grad for x in given]
        want = torch.autograd.grad(attend(*given).square().sum(), given, allow_unused=True)
        torch.testing.assert_close(found, want)
        regard.run.plan._chosen.clear()


# Removed stays removed


@pytest.mark.parametrize(
    "after", [SoftCap(2.0), ScoreStep(lambda s, b, h, i, j: s.tanh())], ids=str
)
def test_a_removed_key_stays_removed(after, seed):
    weights = torch.zeros(1, 1, N).index_fill(2, torch.tensor([2, 7]), -torch.inf)
    rule = Rule(Causal() & Window(4), Dot() + KeyWeights(weights) >> after)
    q, k, v = inputs()
    call = Call.of(q, k, v, rule)
    other = call.replace(v=v.detach().index_fill(2, torch.tensor([2, 7]), 100.0).requires_grad_())
    for executor in able(call):
        torch.testing.assert_close(run(executor, call)[0], run(executor, other)[0])


@pytest.mark.parametrize("factor", [1.5, 0.0, -1.0])
def test_a_temperature_learns_after_keys_were_removed(factor, seed):
    weights = torch.zeros(1, 1, N).index_fill(2, torch.tensor([2, 7]), -torch.inf)
    scale = torch.full((1, 1, N), factor, dtype=torch.float64, requires_grad=True)
    rule = Rule(Window(4), Dot() + KeyWeights(weights) >> Temperature(query=scale))
    call = Call.of(*inputs(), rule)
    wants = []
    for executor in able(call):
        out = EXECUTORS[executor].run(call).out
        wants.append((out, *torch.autograd.grad(out.square().sum(), (scale, call.q))))
    for found in wants:
        assert all(x.isfinite().all() for x in found)
        torch.testing.assert_close(found, wants[0])


def test_a_sink_trains_with_dropout(seed):
    """Weights are dropped after the sink took its share: on the average nothing changes."""
    q, k, v = inputs(torch.float32)
    sink = torch.randn(H, requires_grad=True)
    for weigh in (regard.Softmax(plus_one=True), regard.Softmax(sink=sink)):
        rule = Rule(Causal(), weigh=weigh)
        for executor in (None, "fused", "reference"):
            want = regard.attend(q, k, v, rule)
            outs = [
                regard.attend(q, k, v, rule, dropout=0.1, executor=executor) for _ in range(300)
            ]
            mean = torch.stack(outs).mean(0)
            torch.autograd.grad(outs[0].sum(), (q, k, v))
            assert (mean - want).abs().max() < 0.15
            assert not torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("shape", [(0,), (1, 0), (B, 0), (B, G, 0)])
def test_no_keys_at_positions_of_their_own(shape):
    q, k = torch.randn(B, H, N, D), torch.randn(B, G, 0, D)
    where = torch.zeros(shape, dtype=torch.long)
    for executor in (None, "reference", "chunked"):
        out = regard.attend(q, k, k, Causal(), k_positions=where, executor=executor)
        assert (out == 0).all()


# Scales


@pytest.mark.parametrize("scale", [-1.0, 0.0])
@pytest.mark.parametrize("rule", RULES)
def test_scales_of_any_sign(rule, scale, seed):
    whole = RULES[rule]()
    call = Call.of(*inputs(), whole.replace(score=Dot(scale).replace(steps=whole.score.steps)))
    want = run("reference", call)
    for executor in [*able(call), None]:
        for x, y in zip(run(executor, call), want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
