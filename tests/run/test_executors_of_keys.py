"""Executors that read keys where they are equal the reference, on generated calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, SoftCap
from regard.core.support import Causal, Everything, Sinks, Window
from regard.core.weigh import Softmax
from regard.run.plan import EXECUTORS, make_plan
from regard.run.runner import run
from tests.run.test_executors_equal import EXACT
from tests.run.test_keys import EXACT as TOLERANCE
from tests.run.test_keys import FORMS, B, D, H

OTHERWISE = {
    "reference": "what the others are compared with",
    "flex": "it compiles each rule for seconds: tests/run/test_flex.py has the rules it takes",
}
OF_KEYS = [name for name in EXECUTORS if name not in (*EXACT, *OTHERWISE)]


@st.composite
def few_queries(draw, executor: str) -> Call:
    """A call of one to three queries over keys of a form that an executor reads."""
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    forms = [name for name, made in FORMS.items() if made(9).form in EXECUTORS[executor].reads]
    form, m = draw(st.sampled_from(forms)), draw(st.integers(3, 40))
    n = 1 if draw(st.booleans()) else draw(st.integers(1, 3))
    near, far = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    support = draw(st.sampled_from([
        Everything(), Everything(), Causal(), Causal() & Window(near),
        Causal() & (Window(near) | Sinks(far)), Window(near),
    ]))  # fmt: skip
    score = draw(st.sampled_from([
        Dot(), Dot(), Dot(), Dot(-0.5), Dot(0.0), Dot() >> SoftCap(2.0),
        Dot() + Alibi.for_heads(H),
    ]))  # fmt: skip
    weigh = draw(st.sampled_from([Softmax(), Softmax(), Softmax(plus_one=True)]))
    offset = draw(st.sampled_from([0, m - 1, 60]))
    return Call(torch.randn(B, H, n, D), FORMS[form](m), Rule(support, score, weigh, offset))


@pytest.mark.parametrize("executor", OF_KEYS)
@given(data=st.data())
def test_equals_the_reference_over_keys(executor, data):
    call = data.draw(few_queries(executor)).checked()
    assume(executor in make_plan(call).considered)
    want = run(Call(call.q, call.keys.dense(), call.rule), ("lse",), "reference")
    got = run(call, ("lse",), executor)
    torch.testing.assert_close(got.out, want.out, **TOLERANCE)
    torch.testing.assert_close(got.lse, want.lse, **TOLERANCE)
