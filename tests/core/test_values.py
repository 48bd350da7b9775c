"""Rules are values: every part reads back, compares by meaning, and follows its tensors."""

from __future__ import annotations

import copy
import functools
import pickle
import types

import pytest
import torch
from hypothesis import assume, given

import regard
from regard.core.errors import RegardError, RuleError
from regard.core.reach import reached
from regard.core.rule import Rule
from regard.core.score import Dot, KeyWeights, ScoreStep, SoftCap
from regard.core.score import base as score_base
from regard.core.support import Both, Causal, Everything, Padding, Sinks, Support, Where, Window
from regard.core.value import Value
from regard.core.value import types as value_types
from regard.core.weigh import Softmax
from tests import parts
from tests.strategies import calls

NAMES = {
    **value_types(),
    **vars(regard),
    **{name: getattr(parts, name) for name in ("Dot", "General", "Additive", "Gaussian")},
    "torch": torch,
    "by_head": parts.by_head,
    "louder_by_head": parts.louder_by_head,
}  # fmt: skip
TRUST = ("tests.parts", "tests.strategies")


def test_every_part_has_an_example():
    assert parts.library_parts() == set(parts.PARTS) - {"Documents"}


@pytest.mark.parametrize("name", parts.PARTS)
def test_python_reads_back_what_a_part_prints(name):
    part = parts.PARTS[name]()
    again = eval(repr(part), NAMES)
    assert again == part
    assert repr(again) == repr(part)
    whole = parts.rule_of(name)
    assert eval(repr(whole), NAMES) == whole
    assert "tensor(" not in str(whole)


@pytest.mark.parametrize("name", parts.PARTS)
def test_json_reads_back_what_a_part_says(name):
    part = parts.PARTS[name]()
    assert Value.from_json(part.to_json(), TRUST) == part
    assert Rule.from_json(parts.rule_of(name).to_json(), TRUST) == parts.rule_of(name)


@given(calls(most=12))
def test_generated_rules_read_back(call):
    assume(all(x.numel() <= 1000 for x in call.rule.tensors()))
    from tests.strategies import _alternating

    again = eval(repr(call.rule), {**NAMES, "_alternating": _alternating})
    assert again == call.rule
    assert Rule.from_json(call.rule.to_json(), TRUST) == call.rule


def test_large_tensors_are_shown_by_shape_and_cannot_be_misread():
    weights = KeyWeights(torch.zeros(1, 1, 2000))
    with pytest.raises(SyntaxError):
        eval(repr(weights), NAMES)


# Equality


def test_rules_that_mean_the_same_are_equal():
    a, b, c = Causal(), Window(3), Sinks(2)
    assert a & b == b & a
    assert hash(a & b) == hash(b & a)
    assert (a & b) & c == a & (c & b)
    assert a | b | a == b | a
    assert a & a == a
    assert ~~a == a
    assert a & Everything() == a
    assert a | ~Everything() == a
    assert a & ~Everything() == ~Everything()
    assert Both((a, Both((b, c)))) == a & b & c
    assert Window(3, 3) == Window(3)
    assert Dot(1) == Dot(1.0)
    assert SoftCap(30) == SoftCap(30.0)
    assert a & b != a | b
    assert a & b != a & c


@pytest.mark.parametrize("name", parts.SUPPORTS)
def test_a_shift_of_the_support_is_a_shift_of_the_rule(name):
    support = parts.SUPPORTS[name]()
    shifted = Rule(support.shift(2))
    if support.moves:
        assert shifted == Rule(support).shift(2)
    i, j = torch.arange(parts.N - 2).view(-1, 1), torch.arange(parts.N)
    b, h = torch.arange(parts.B).view(-1, 1, 1, 1), torch.arange(parts.H).view(-1, 1, 1)
    want = Rule(support).shift(2).allows(b, h, i, j)
    assert torch.equal(shifted.allows(b, h, i, j).expand_as(want), want)


def test_a_step_that_asks_for_positions_keeps_the_two_shifts_apart():
    later = Rule(Causal().shift(3), Dot() + regard.Alibi.for_heads(2))
    assert later.offset == 0
    assert later != Rule(Causal(), Dot() + regard.Alibi.for_heads(2)).shift(3)


def test_equal_tables_that_may_come_to_differ_both_stay():
    first, second = torch.ones(1, 4).bool(), torch.ones(1, 4).bool()
    both = Padding(first) & Padding(second)
    second[0, 0] = False
    assert not both.matrix(4)[0, 0, :, 0].any()


@pytest.mark.parametrize("name", parts.SUPPORTS)
def test_a_support_is_not_true_or_false(name):
    support = parts.SUPPORTS[name]()
    for ask in (bool, lambda s: s and s, lambda s: s or s, lambda s: not s):
        with pytest.raises(RuleError, match="use & in place of `and`"):
            ask(support)


# JSON and code


def test_text_that_names_functions_is_refused_unless_its_module_is_trusted():
    text = Rule(Where(parts.by_head)).to_json()
    with pytest.raises(RuleError, match=r"trust=\('tests.parts',\)"):
        Rule.from_json(text)
    with pytest.raises(RuleError, match="none was named"):
        Rule.from_json('{"type": "Where", "test": {"function": "os:system"}}')
    assert Rule.from_json(text, trust=[parts]).support.test is parts.by_head
    passing_through = text.replace("tests.parts:by_head", "tests.parts:torch.save")
    with pytest.raises(RuleError):
        Rule.from_json(passing_through, trust=[parts])
    with pytest.raises(RuleError, match="Window"):
        Rule.from_json(Window(3).to_json())


class Loud:
    def louder(self, s, b, h, i, j):
        return 2 * s


@pytest.mark.parametrize(
    "function",
    [
        lambda s, b, h, i, j: s,
        functools.partial(parts.louder_by_head),
        Loud().louder,
        torch.nn.Identity(),
    ],
)
def test_a_function_without_a_name_does_not_become_json(function):
    with pytest.raises(RuleError, match="imported by name"):
        Rule(score=Dot() >> ScoreStep(function)).to_json()


@pytest.mark.parametrize("bad", [
    '{"tensor": "", "dtype": "float32", "shape": [1000000000000]}',
    '{"tensor": "AAAA", "dtype": "float32", "shape": [1]}',
    '{"tensor": "", "dtype": "nn", "shape": [0]}',
    '{"tensor": "AAAAAA==", "dtype": "float32", "shape": [-1]}',
    '[1]', "[" * 5000 + "]" * 5000,
])  # fmt: skip
def test_bad_text_is_one_kind_of_error(bad):
    with pytest.raises(RuleError):
        Value.from_json('{"type": "Alibi", "slopes": ' + bad + "}")


# Heads


@pytest.mark.parametrize("heads", [[2], [3, 1], [1, 2, 3]])
@pytest.mark.parametrize("name", parts.SUPPORTS)
def test_taking_heads_of_a_support_keeps_what_each_may_attend_to(name, heads):
    support = parts.SUPPORTS[name]()
    i, j = torch.arange(parts.N).view(-1, 1), torch.arange(parts.N)
    b = torch.arange(parts.B).view(-1, 1, 1, 1)

    def matrix(s: Support, count: int) -> torch.Tensor:
        h = torch.arange(count).view(-1, 1, 1)
        return s.allows(b, h, i, j).expand(parts.B, count, parts.N, parts.N)

    whole = matrix(support, parts.H)
    assert torch.equal(matrix(support.take_heads(heads), len(heads)), whole[:, heads])


@pytest.mark.parametrize("heads", [[2], [3, 1], [1, 2, 3]])
@pytest.mark.parametrize("name", [*parts.STEPS, *parts.SCORES])
def test_taking_heads_of_a_score_keeps_what_each_scores(name, heads):
    score = parts.rule_of(name).score
    q = torch.randn(parts.B, parts.H, parts.N, parts.D)

    def scores(of: score_base.Score, q: torch.Tensor) -> torch.Tensor:
        b, h = torch.arange(parts.B).view(-1, 1, 1, 1), torch.arange(q.shape[1]).view(-1, 1, 1)
        i, j = torch.arange(parts.N).view(-1, 1), torch.arange(parts.N)
        at = score_base.At(b, h, i, j, i, j)
        return of.bind(q, q)(of.match.between(q, q), at)

    torch.testing.assert_close(
        scores(score.take_heads(heads), q[:, heads]), scores(score, q)[:, heads]
    )


# What a function reaches


class Holder:
    table = torch.ones(3)

    def __init__(self) -> None:
        self.weight = torch.ones(3)

    def change(self, s, b, h, i, j):
        return s * self.weight.sum() * self.helper()

    def helper(self):
        return self.table.sum()


KEPT = torch.ones(3)


def _of_global(s, b, h, i, j):
    return s * KEPT.sum()


def reaching() -> dict[str, tuple[object, list[torch.Tensor]]]:
    """Functions, with the tensors each of them reads."""
    x, holder, layer = torch.ones(3), Holder(), torch.nn.Linear(1, 1)
    deep = {"a": [types.SimpleNamespace(), (x,)]}
    space = types.SimpleNamespace(weight=x)
    return {
        "closure": (lambda s, b, h, i, j: s * x.sum(), [x]),
        "default": (lambda s, b, h, i, j, t=x: s * t.sum(), [x]),
        "global": (_of_global, [KEPT]),
        "method": (holder.change, [holder.weight, Holder.table]),
        "partial": (functools.partial(lambda t, s, b, h, i, j: s * t.sum(), x), [x]),
        "module": (lambda s, b, h, i, j: layer(s[..., None])[..., 0], list(layer.parameters())),
        "dict": (lambda s, b, h, i, j: s * deep["a"][1][0].sum(), [x]),
        "object": (lambda s, b, h, i, j: s * space.weight.sum(), [x]),
        "function of a function": ((lambda f: lambda *a: f(*a))(lambda s, *a: s * x.sum()), [x]),
    }


@pytest.mark.parametrize("how", reaching())
def test_the_tensors_that_a_function_reads_are_found(how):
    function, want = reaching()[how]
    found = {id(t) for t in reached(function).tensors}
    assert {id(t) for t in want} <= found


def test_what_is_kept_is_forgotten_when_something_changes():
    mask, limit = torch.ones(1, 4).bool(), [2]
    for support, change in (
        (Padding(mask), lambda: mask.fill_(False)),
        (
            Where(lambda b, h, i, j: (j < limit[0]) & (i == i)),
            lambda: limit.append(limit.pop() + 1),
        ),
        (Padding(mask.clone()) & Where(lambda b, h, i, j: mask[0, j]), lambda: mask.logical_not_()),
    ):
        made = [support.memo("x", object) for _ in range(2)]
        assert made[0] is made[1]
        change()
        assert support.memo("x", object) is not made[0]
    with torch.inference_mode():
        uncounted = torch.ones(1, 4).bool()
        support = Padding(uncounted)
        first = support.memo("x", object)
        assert support.memo("x", object) is first
        uncounted[0, 0] = False
        assert support.memo("x", object) is not first


def test_a_moved_parameter_has_another_signature():
    weight = torch.nn.Parameter(torch.zeros(1, 1, 4))
    rule = Rule(score=Dot() + KeyWeights(weight))
    before = rule.signature
    weight.data = weight.data.double()
    assert rule.signature != before
    now = rule.signature
    weight.requires_grad_(False)
    assert rule.signature != now
    assert copy.deepcopy(rule) == rule


@pytest.mark.parametrize(
    "rule",
    [
        Rule(),
        Rule(score=Dot(0.3)),
        Rule(weigh=Softmax(plus_one=True)),
        Rule(weigh=Softmax(sink=torch.zeros(2))),
        Rule(Causal() & Window(4)),
        Rule(Everything(), Dot() >> SoftCap(30)),
    ],
    ids=str,
)
def test_a_shifted_rule_is_the_rule_made_at_that_offset(rule: Rule) -> None:
    for start in (0, 5):
        before = rule.replace(offset=start)
        shifted, made = before.shift(7), before.replace(offset=start + 7)
        assert shifted == made
        assert hash(shifted) == hash(made)
        assert repr(shifted) == repr(made)
        assert shifted.signature == made.signature
        assert (shifted.plain, shifted.position_free) == (made.plain, made.position_free)
        assert Rule.numbered(shifted.number) is shifted
        assert pickle.loads(pickle.dumps(shifted)) == made
        assert copy.deepcopy(shifted) == made
        assert shifted.shift(-7) == before
        with pytest.raises(RegardError):
            before.shift(-1 - start)
