"""Streaming equals the reference: output, lse and every gradient, for any rule and any shape."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.call import Call
from regard.core.errors import ExecutorError, RegardError
from regard.core.partial import Partial, merge
from regard.core.rule import Rule
from regard.core.score import (
    Additive,
    Alibi,
    Cope,
    Dot,
    Gaussian,
    General,
    KeyWeights,
    LowRankBias,
    RelativeBias,
    Score,
    ScoreStep,
    ShawBias,
    SoftCap,
    T5Bias,
    Temperature,
)
from regard.core.support import (
    Causal,
    ChosenKeys,
    Dilated,
    Documents,
    Everything,
    Padding,
    PerHead,
    Sinks,
    Tiles,
    Where,
    Window,
)
from regard.core.tilemap import EMPTY
from regard.core.value import Value
from regard.core.weigh import Relu, Sigmoid, Signed, Softmax
from regard.run import walk
from regard.run.chunked import Chunked
from regard.run.reference import Reference

H = 4


def learned(*shape, low=None):
    x = torch.randn(*shape, dtype=torch.float64)
    return (x if low is None else x.abs() + low).requires_grad_()


def with_holes(*shape):
    x = learned(*shape).detach()
    return x.masked_fill(torch.rand(shape) < 0.3, -torch.inf)


SUPPORTS = {
    "everything": lambda b, n, m: Everything(),
    "causal": lambda b, n, m: Causal(),
    "window and sinks": lambda b, n, m: Causal() & (Window(9) | Sinks(2)),
    "the future": lambda b, n, m: ~Causal(),
    "dilated": lambda b, n, m: Dilated(3),
    "nothing": lambda b, n, m: Window(2) & ~Window(2),
    "per head": lambda b, n, m: PerHead([Causal(), Causal(), Window(5), Sinks(1)]),
    "padding": lambda b, n, m: Padding(torch.rand(b, m) < 0.7),
    "documents": lambda b, n, m: Documents(torch.randint(0, 3, (b, max(n, m)))),
    "tiles": lambda b, n, m: Tiles(torch.rand(b, H, -(-n // 32), -(-m // 32)) < 0.4, 32),
    "keys": lambda b, n, m: ChosenKeys(torch.randint(-1, m, (1, 1, n, 3))),
    "predicate": lambda b, n, m: Where(lambda b, h, i, j: (i + j + h) % 3 == 0),
}
SCORES = {
    "dot": lambda b, n, m, d: Dot(),
    "capped": lambda b, n, m, d: Dot(0.3) + Alibi(learned(H)) >> SoftCap(4),
    "general": lambda b, n, m, d: General(learned(H, d, d)) + RelativeBias(learned(1, 7)),
    "additive": lambda b, n, m, d: Additive(learned(H, d, 3), learned(1, d, 3), learned(H, 3)),
    "gaussian": lambda b, n, m, d: Gaussian(3.0) + T5Bias(learned(H, 8)),
    "low rank": lambda b, n, m, d: (
        Dot() + LowRankBias(learned(b, 1, n, 2), learned(1, H, m, 2)) + KeyWeights(learned(1, H, m))
    ),
    "removed": lambda b, n, m, d: Dot() + KeyWeights(with_holes(b, 1, m)),
    "tempered": lambda b, n, m, d: (
        Dot() + Alibi(learned(1)) >> Temperature(learned(b, H, n), learned(1, 1, m))
    ),
    "shaw": lambda b, n, m, d: Dot() >> Temperature(learned(1, 1, n)) >> ShawBias(learned(H, 5, d)),
    "contextual": lambda b, n, m, d: Dot() + Cope(learned(1, 6, d)),
    "function": lambda b, n, m, d: Dot() >> ScoreStep(lambda s, b, h, i, j: s * (1 + h) + 0.1 * j),
}
WEIGHS = {
    "softmax": lambda: Softmax(),
    "sink": lambda: Softmax(sink=learned(H)),
    "signed": lambda: Signed(),
    "sigmoid": lambda: Sigmoid(-1.0),
    "relu": lambda: Relu(2, 0.1),
}


@st.composite
def calls(draw):
    torch.manual_seed(draw(st.integers(0, 2**31 - 1), label="seed"))
    b, g = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 4]))
    n, m = (draw(st.sampled_from([1, 2, 31, 128, 129, 300])) for _ in "nm")
    d, e = draw(st.sampled_from([(4, 4), (5, 3)]))
    names = [draw(st.sampled_from(sorted(x)), label="part") for x in (SUPPORTS, SCORES, WEIGHS)]
    rule = Rule(
        SUPPORTS[names[0]](b, n, m),
        SCORES[names[1]](b, n, m, d),
        WEIGHS[names[2]](),
    )
    if names[0] in ("causal", "window and sinks", "the future", "dilated"):
        rule = rule.shift(draw(st.sampled_from([0, 1, 170])))
    q, k, v = learned(b, H, n, d), learned(b, g, m, d), learned(b, g, m, e)
    return Call.of(q, k, v, rule).checked()


def answers(executor, call, close=True):
    """Output, lse, and every gradient of a random sum of both."""
    part = executor.run(call)
    part = call.rule.weigh.apply_sink(part) if close else part
    torch.manual_seed(part.out.numel())
    loss = (part.out * torch.randn(part.out.shape)).sum()
    if part.lse is not None:
        finite = torch.where(part.lse.isfinite(), part.lse, 0.0)
        loss = loss + (finite * torch.randn(part.lse.shape)).sum()
    learning = [t for t in call.rule.tensors() if t.requires_grad]
    leaves = [call.q, call.k, call.v, *learning]
    return [*part, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


def same(found, wanted, tolerance=1e-8):
    assert len(found) == len(wanted)
    for x, y in zip(found, wanted, strict=True):
        if y is None:
            assert x is None
        else:
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@given(call=calls(), room=st.sampled_from([1 << 14, 1 << 16, 1 << 18]))
def test_streaming_equals_the_reference(call, room):
    usual = walk.SCORES["cpu"]
    walk.SCORES["cpu"] = room  # small rooms cut batch and heads into lanes
    try:
        same(answers(Chunked(), call), answers(Reference(), call))
    finally:
        walk.SCORES["cpu"] = usual


@pytest.mark.parametrize("weigh", [Softmax(), Signed(), Sigmoid(), Relu()], ids=repr)
def test_rows_without_keys_are_zero_with_no_gradient(seed, weigh):
    print("seed", seed)
    q, k, v = learned(1, 2, 260, 4), learned(1, 2, 260, 4), learned(1, 2, 260, 4)
    # Rows 0 to 129 meet nothing: a whole tile, and some rows of the next one.
    rule = Rule(Where(lambda b, h, i, j: (i >= 130) & (j <= i)), weigh=weigh)
    out, lse = Chunked().run(Call.of(q, k, v, rule))
    (out.sum() + (0 if lse is None else lse.sum())).backward()
    assert not out[:, :, :130].any()
    assert lse is None or bool((lse[:, :, :130] == -torch.inf).all())
    assert not q.grad[:, :, :130].any()
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))


def test_no_keys_and_no_queries(seed):
    q, none = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 0, 4)
    out, lse = Chunked().run(Call.of(q, none, none))
    assert not out.any()
    assert bool((lse == -torch.inf).all())
    assert Chunked().run(Call.of(none, q, q)).out.shape == (1, 2, 0, 4)


@pytest.mark.parametrize("per_head", [False, True])
def test_positions_take_the_place_of_the_tile_map(seed, per_head):
    print("seed", seed)
    b, g, n, m = 2, 2, 140, 300
    q, k, v = learned(b, H, n, 8), learned(b, g, m, 8), learned(b, g, m, 8)
    places = torch.randint(0, 500, (b, g, m)).sort(-1).values + torch.arange(m)
    places[..., :7] = -1
    k_positions = places if per_head else places[0, 0]
    q_positions = torch.randint(0, 500, (b, n)).sort(-1).values + torch.arange(n)
    rule = Rule(Causal() & Window(200), Dot() + RelativeBias(learned(H, 9)))
    call = Call.of(q, k, v, rule, q_positions, k_positions).checked()
    same(answers(Chunked(), call), answers(Reference(), call))


def test_parts_merge_to_the_whole_with_gradients(seed):
    print("seed", seed)
    q, k, v = learned(1, 2, 70, 4), learned(1, 1, 300, 4), learned(1, 1, 300, 4)
    rule = Rule(weigh=Signed())
    whole = answers(Chunked(), Call.of(q, k, v, rule))

    class InParts(Chunked):
        def run(self, call: Call) -> Partial:
            cut = [call.replace(k=call.k[:, :, c], v=call.v[:, :, c]) for c in parts]
            return merge(*(Chunked().run(c) for c in cut))

    parts = (slice(0, 1), slice(1, 200), slice(200, 300))
    same(answers(InParts(), Call.of(q, k, v, rule)), whole)


def test_bf16_loses_no_more_than_its_inputs(seed):
    print("seed", seed)
    exact = [learned(2, h, 300, 32) for h in (4, 2, 2)]
    low = [x.detach().bfloat16().requires_grad_() for x in exact]
    same_input = [x.detach().double().requires_grad_() for x in low]
    rule = Rule(Causal(), Dot() + Alibi.for_heads(4))
    found = Chunked().run(Call.of(*low, rule))
    wanted = Reference().run(Call.of(*same_input, rule))
    assert found.out.dtype == torch.bfloat16
    assert found.lse.dtype == torch.float32
    # Sums are kept in float32, so only the last rounding is lost.
    bound = 2**-8 * wanted.out.abs() + 1e-5
    assert bool(((found.out.double() - wanted.out).abs() <= bound).all())


def test_empty_tiles_are_never_looked_at(seed):
    asked = []

    def watch(s, b, h, i, j):
        asked.append(s.numel())
        return s

    n = 1024
    rule = Rule(Causal() & Window(64), Score(Dot().match, (ScoreStep(watch),)))
    x = torch.randn(1, 1, n, 8)
    Chunked().run(Call.of(x, x, x, rule))
    state = rule.tiles(n, n, 128).state
    # Two tiles of 128 keys are taken together.
    assert sum(asked) <= 2 * 128 * 128 * int((state != EMPTY).sum())


def test_memory_grows_with_n_and_not_with_its_square(seed):
    peak = {}
    for n in (1024, 4096):
        q = torch.randn(1, 1, n, 4, requires_grad=True)
        largest = 0

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal largest
                out = func(*args, **(kwargs or {}))
                for x in out if isinstance(out, tuple | list) else (out,):
                    if isinstance(x, torch.Tensor):
                        largest = max(largest, x.numel())
                return out

        with Watch():
            Chunked().run(Call.of(q, q, q, Rule(Causal()))).out.sum().backward()
        peak[n] = largest
    assert peak[4096] <= max(4 * peak[1024], walk.SCORES["cpu"])


def test_it_says_why_not(seed):
    q = torch.randn(1, 2, 3, 4)
    assert "dropout" in Chunked().can(Call.of(q, q, q, dropout=0.1)).reason
    weight = torch.ones(1, requires_grad=True)
    behind = weakref.ref(weight)  # which nothing can look through
    hidden = Rule(score=Dot() >> ScoreStep(lambda s, b, h, i, j: s * behind()))
    assert "being learned" in Chunked().can(Call.of(q, q, q, hidden)).reason
    with torch.no_grad():
        assert Chunked().can(Call.of(q, q, q, hidden))


def test_twice_differentiating_is_refused(seed):
    q = torch.randn(1, 1, 3, 4, requires_grad=True)
    out = Chunked().run(Call.of(q, q, q)).out
    with pytest.raises(ExecutorError, match="second derivative"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def test_tensors_of_a_value_can_be_swapped():
    rule = Rule(
        PerHead([Causal(), Padding(torch.ones(2, 3))]), Dot() + Alibi(torch.zeros(2)) >> SoftCap(3)
    )
    others = [torch.zeros(2, 3, dtype=torch.bool), torch.ones(2)]
    swapped = rule.with_tensors(others)
    assert all(x is y for x, y in zip(swapped.tensors(), others, strict=True))
    assert swapped.signature == rule.signature
    assert swapped != rule
    assert swapped.with_tensors(rule.tensors()) == rule
    assert isinstance(Value.from_json(swapped.to_json()), Rule)
    for wrong in ([], others[:1], [*others, others[0]]):
        with pytest.raises(RegardError, match="tensors"):
            rule.with_tensors(wrong)
