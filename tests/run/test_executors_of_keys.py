"""Executors that read keys where they are equal the reference, on generated calls."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, SoftCap
from regard.core.support import Causal, Everything, Sinks, Window
from regard.core.weigh import Softmax
from regard.run.plan import EXECUTORS
from regard.run.runner import run
from tests.interpreter import remapped_once
from tests.run.test_executors_equal import EXACT
from tests.run.test_keys import EXACT as TOLERANCE
from tests.run.test_keys import FORMS, D

OTHERWISE = {
    "reference": "what the others are compared with",
    "flex": "it compiles each rule for seconds: tests/run/test_flex.py has the rules it takes",
}
OF_KEYS = [name for name in EXECUTORS if name not in (*EXACT, *OTHERWISE)]


# An executor takes one form and few rules: a draw that it cannot run costs a thirtieth of a case.
TRIES = 60


@cache
def forms_of(executor: str) -> list[str]:
    """Forms of keys that an executor reads."""
    return [name for name, made in FORMS.items() if made(9).form in EXECUTORS[executor].reads]


def drawn(executor: str, draw: random.Random) -> Call:
    """A call of one to three queries over keys of a form that an executor reads.

    Mostly of one row and one key head: interpreted kernels cost by the program, one for each.
    """
    torch.manual_seed(draw.getrandbits(31))
    form = draw.choice(forms_of(executor))
    m, n = draw.randint(3, 40), draw.choice([1, 1, 2, 3])
    b, g, share = draw.choice([1, 1, 2]), draw.choice([1, 1, 2]), draw.choice([1, 2, 3])
    near, far = draw.randint(1, 40), draw.randint(1, 9)
    support = draw.choice([
        Everything(), Everything(), Causal(), Causal() & Window(near),
        Causal() & (Window(near) | Sinks(far)), Window(near),
    ])  # fmt: skip
    score = draw.choice([
        Dot(), Dot(), Dot(), Dot(-0.5), Dot(0.0), Dot() >> SoftCap(2.0),
        Dot() + Alibi.for_heads(g * share),
    ])  # fmt: skip
    weigh = draw.choice([Softmax(), Softmax(), Softmax(plus_one=True)])
    offset = draw.choice([0, m - 1, 60])
    keys = FORMS[form](m, b=b, g=g)
    return Call(
        torch.randn(b, g * share, n, D), keys, Rule(support, score, weigh, offset)
    ).checked()


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    with remapped_once():
        yield


@pytest.mark.parametrize("executor", OF_KEYS)
@given(seed=st.integers(0, 2**62))
def test_equals_the_reference_over_keys(executor, seed):
    draw = random.Random(seed)
    tried = (drawn(executor, draw) for _ in range(TRIES))
    call = next((x for x in tried if EXECUTORS[executor].can(x)), None)
    assume(call is not None)
    want = run(Call(call.q, call.keys.dense(), call.rule), ("lse",), "reference")
    got = run(call, ("lse",), executor)
    torch.testing.assert_close(got.out, want.out, **TOLERANCE)
    torch.testing.assert_close(got.lse, want.lse, **TOLERANCE)
