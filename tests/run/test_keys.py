"""Every executor equals the reference over every form of keys, gradients of keys included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regard
from regard.core.call import Call
from regard.core.errors import RegardError
from regard.core.key_forms import Packed, Paged, Ragged, Summary
from regard.core.keys import Dense, Keys, Later, Positions, Unordered
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, KeyWeights, SoftCap
from regard.core.support import Causal, Everything, Sinks, Window
from regard.core.weigh import Relu, Softmax
from regard.memories import Quantized
from regard.run.counting import recording
from regard.run.executor import No
from regard.run.plan import EXECUTORS, densified, make_plan
from regard.run.runner import run

B, G, H, D = 2, 2, 4, 8
EXACT = {"atol": 2e-5, "rtol": 2e-5}


def plain(m: int, learned: bool = False, b: int = B, g: int = G) -> Dense:
    k, v = (torch.randn(b, g, m, D, requires_grad=learned) for _ in "kv")
    return Dense(k, v)


def evicted(m: int, learned: bool = False, b: int = B, g: int = G) -> Dense:
    """Keys of which some went, and the newest that came after."""
    keys = plain(m, learned, b, g)
    gone = m - m // 3
    at = torch.stack([torch.randperm(2 * m)[:gone].sort().values for _ in range(b * g)])
    return Dense(keys.k, keys.v, Positions(at.view(b, g, -1), 3 * m, (b, g, m), True))


def padded(m: int, learned: bool = False, b: int = B, g: int = G) -> Dense:
    keys = plain(m, learned, b, g)
    at = torch.arange(m).expand(b, -1).clone()
    at[0, : m // 2] = -1
    return Dense(keys.k, keys.v, at)


def slots(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    some = torch.rand(b, g, m).argsort(-1)[..., : max(1, m // 2)]
    return plain(m, learned, b, g).take(some)


def slots_with_holes(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    some = torch.rand(b, g, m).argsort(-1)[..., : max(1, m // 2)]
    return evicted(m, learned, b, g).take(torch.where(torch.rand(some.shape) < 0.3, -1, some))


def paged(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    pages = -(-m // 4)
    k, v = torch.randn(2, b * pages, g, 4, D).unbind(0)
    table = torch.randperm(b * pages).view(b, 1, pages)
    lengths = torch.randint(1, m + 1, (b, 1))
    return Paged(k, v, table, lengths)


def paged_alike(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    # Keys and values in one tensor, as a server keeps them: pages that lie apart.
    pages = -(-m // 4)
    pool = torch.randn(b * pages, g, 8, D)
    table = torch.randperm(b * pages).view(b, 1, pages)
    lengths = torch.full((b, 1), m)
    return Paged(pool[:, :, :4], pool[:, :, 4:], table, lengths, longest=m)


def paged_heads(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    pages = -(-m // 4)
    k, v = torch.randn(2, b * g * pages, 1, 4, D).unbind(0)
    table = torch.randperm(b * g * pages).view(b, g, pages)
    lengths = torch.randint(1, m + 1, (b, g))
    return Paged(k, v, table, lengths, longest=int(lengths.max()))


def packed(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    k, v = Quantized(8, "channel", 4, 2), Quantized(4, "token", 4, 2)
    for store in (k, v):
        store.append(torch.randn(b, g, max(m, 6), D))
        store.settle()
    made = k.with_values(v, None)
    assert isinstance(made, Packed)
    return made


def ragged(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    parts = []
    for head in range(g):
        k, v = (torch.randn(b, 1, max(1, m - 3 * head), D, requires_grad=learned) for _ in "kv")
        parts.append(((head,), Dense(k, v)))
    return Ragged(tuple(parts))


def summary(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    return Summary(plain(m, learned, b, g), torch.zeros(b, g, m // 4, D), 4)


def unordered(m: int, learned: bool = False, b: int = B, g: int = G) -> Keys:
    keys, at = plain(m, learned, b, g), torch.stack([torch.randperm(m) for _ in range(b)])
    return Unordered(keys.k, keys.v, Later(lambda: at, True))


FORMS: dict[str, Callable[..., Keys]] = {
    f.__name__: f
    for f in (
        plain, evicted, padded, slots, slots_with_holes, paged, paged_alike, paged_heads, packed,
        ragged, summary, unordered,
    )
}  # fmt: skip
CARRY = [x for x in FORMS if x not in ("paged", "paged_alike", "paged_heads", "packed")]
RULES = {
    "all": Rule(),
    "causal": Rule(Causal(), offset=60),
    "window": Rule(Causal() & (Window(9) | Sinks(2)), offset=20),
    "scale below 0": Rule(score=Dot(-0.5)),
    "cap": Rule(Everything(), Dot() >> SoftCap(2.0)),
    "slopes": Rule(Causal(), Dot() + Alibi.for_heads(H), offset=30),
    "sink": Rule(weigh=Softmax(sink=torch.randn(H))),
    "power": Rule(weigh=Relu(2, 0.1)),
}


# Keys on other ranks are tried in tests/schemes, pages of vLLM in tests/serving.
ELSEWHERE = {"lent", "sharded", "vllm"}


def test_every_form_that_there_is_is_tried() -> None:
    found, todo = set(), [Keys]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if hasattr(kind, "form"):
            found.add(kind.form)
    assert found - ELSEWHERE == {f(9).form for f in FORMS.values()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_all_executors_that_can_equal_the_reference(form: str, rule: str, seed: int) -> None:
    for n, m in ((1, 23), (3, 23), (1, 40)):
        keys = FORMS[form](m)
        call = Call(torch.randn(B, H, n, D), keys, RULES[rule]).checked()
        want = run(Call(call.q, keys.dense(), call.rule), ("lse", "weights"), "reference")
        plan = make_plan(call)
        for name in (*plan.considered, None):
            if name == "flex":  # it has tests of its own, and compiles for seconds
                continue
            got = run(call, ("lse", "weights"), name)
            torch.testing.assert_close(got.out, want.out, **EXACT)
            if want.lse is not None:
                torch.testing.assert_close(got.lse, want.lse, **EXACT)
            if call.keys.form != "slots" and got.weights.shape == want.weights.shape:
                torch.testing.assert_close(got.weights.sum(-1), want.weights.sum(-1), **EXACT)
        # And as the public function.
        out = regard.attend(call.q, keys, rule=call.rule)
        torch.testing.assert_close(out, want.out, **EXACT)


@pytest.mark.parametrize("form", CARRY)
@pytest.mark.parametrize("rule", ["all", "window", "sink"])
def test_gradients_reach_the_keys_of_every_form(form: str, rule: str, seed: int) -> None:
    keys = FORMS[form](17, learned=True)
    leaves = [x for x in keys.tensors() if x.requires_grad]
    q = torch.randn(B, H, 1, D, requires_grad=True)
    pull = torch.randn(B, H, 1, D)
    call = Call(q, keys, RULES[rule])
    want = torch.autograd.grad((run(densified(call), executor="reference").out * pull).sum(),
                               [q, *leaves])  # fmt: skip
    for name in (*make_plan(call).considered, None):
        if name == "flex":
            continue
        again = Call(q, keys, RULES[rule])
        got = torch.autograd.grad((run(again, executor=name).out * pull).sum(), [q, *leaves])
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_taking_slots_is_taking_them_of_what_is_dense(form: str, seed: int) -> None:
    keys = FORMS[form](21)
    whole = keys.dense()
    some = torch.rand(B, G, whole.m).argsort(-1)[..., :5].sort(-1).values
    got = keys.take(some).dense()
    index = some[..., None].expand(-1, -1, -1, D)
    assert torch.equal(got.k, whole.k.gather(2, index))
    k, v = keys.gather(some)
    assert torch.equal(k, whole.k.gather(2, index))
    assert torch.equal(v, whole.v.gather(2, index))
    for first in (0, 3, whole.m - 1, whole.m):
        assert torch.equal(keys.since(first), whole.k[:, :, first:])
    assert keys.nbytes > 0
    assert keys.shape[:2] == (B, G)
    assert keys.m == whole.m
    assert repr(keys)


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_says_when_keys_are_made_dense(form: str, seed: int) -> None:
    keys = FORMS[form](23)
    for n in (1, 4):
        plan = make_plan(Call(torch.randn(B, H, n, D), keys, RULES["cap"]))
        simple = keys.simplest(RULES["cap"])
        if simple.form in EXECUTORS[plan.executor].reads:
            assert plan.made_dense == 0
        else:
            assert plan.made_dense == simple.dense_bytes > 0
            assert "written out" in str(plan)


@given(
    m=st.integers(1, 40), n=st.integers(1, 3), form=st.sampled_from(sorted(FORMS)),
    rule=st.sampled_from(sorted(RULES)), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
@settings(max_examples=150)
def test_a_plan_depends_on_nothing_but_its_key(
    m: int, n: int, form: str, rule: str, seed: int
) -> None:
    """What was planned for one call, and is run for another of its kind, can run that one."""
    torch.manual_seed(seed)
    need_its_plan(m, n, form, rule)


@pytest.mark.parametrize("form", FORMS)
def test_few_keys_are_not_planned_as_many(form: str, seed: int) -> None:
    for rule in RULES:
        for m in (40, 1, 31):
            need_its_plan(m, 2, form, rule)


def need_its_plan(m: int, n: int, form: str, rule: str) -> None:
    """Run a call, and ask whether what ran it can."""
    call = Call(torch.randn(B, H, n, D), FORMS[form](m), RULES[rule])
    with recording() as ran:
        out = run(call).out
    used = call.replace(keys=call.keys.simplest(call.rule))
    executor = EXECUTORS[ran[0].result.executor]
    used = used if used.keys.form in executor.reads else densified(used)
    assert not isinstance(executor.can(used), No), executor.can(used)
    want = run(Call(call.q, call.keys.dense(), call.rule), executor="reference").out
    torch.testing.assert_close(out, want, **EXACT)


@pytest.mark.parametrize("n", [1, 5])
def test_weights_of_keys_that_become_infinite_are_planned_anew(n: int, seed: int) -> None:
    """An infinite weight cannot ride in a channel: a plan for finite ones must not serve it."""
    q, k = torch.randn(1, 2, n, D), torch.randn(1, 2, 9, D)
    for change in ("another tensor", "in place"):
        weights = torch.zeros(1, 1, 9)
        rule = Rule(score=Dot() + KeyWeights(weights))
        torch.testing.assert_close(regard.attend(q, k, k, rule), regard.attend(q, k, k))
        if change == "in place":
            weights[..., 4:] = -torch.inf
        else:
            weights = torch.where(torch.arange(9) < 4, 0.0, -torch.inf)[None, None]
            rule = Rule(score=Dot() + KeyWeights(weights))
        got = regard.attend(q, k, k, rule)
        torch.testing.assert_close(got, regard.attend(q, k[:, :, :4], k[:, :, :4]))


@pytest.mark.parametrize("scale", [-1.0, 0.0, -0.25])
@pytest.mark.parametrize("support", [Causal(), Causal() & Window(3), Everything()])
def test_scales_of_zero_and_below(scale: float, support: regard.Support, seed: int) -> None:
    rule = Rule(support, Dot(scale))
    q, k = (torch.randn(1, 2, 12, D, requires_grad=True) for _ in "qk")
    want = regard.attend(q, k, k, rule, executor="reference")
    wanted = torch.autograd.grad(want.sum(), [q, k])
    plan = regard.plan(q, k, k, rule)
    for name in (*plan.considered, None):
        if name == "flex":
            continue
        got = regard.attend(q, k, k, rule, executor=name)
        torch.testing.assert_close(got, want, **EXACT)
        for x, y in zip(torch.autograd.grad(got.sum(), [q, k]), wanted, strict=True):
            torch.testing.assert_close(x, y, **EXACT)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, keys: regard.attend(q, keys, q), "v"),
        (lambda q, keys: regard.attend(q, keys, k_positions=torch.arange(9)), "k_positions"),
        (lambda q, keys: run(Call(q, keys.k)), "keys"),
        (lambda q, keys: run(Call(q[:1], keys.take(torch.zeros(B, G, 1).long()))), "keys"),
        (lambda q, keys: run(Call(q.double(), keys.take(torch.zeros(B, G, 1).long()))), "keys"),
        (lambda q, keys: run(Call(q, keys), ("everything",)), "want"),
        (lambda q, keys: regard.attend(q, keys, executor="paged"), "executor"),
        (lambda q, keys: Ragged((((0,), keys),)), "parts"),
        (lambda q, keys: Ragged((((0, 2), keys),)), "parts"),
    ],
)
def test_bad_keys_are_named(call: Callable[[Tensor, Dense], object], words: str) -> None:
    with pytest.raises(RegardError, match=f"`{words}`"):
        call(torch.randn(B, H, 1, D), plain(9))
