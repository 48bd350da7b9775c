"""The parts that methods share do what they say, and what many papers are made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.core.call import Call
from regard.core.errors import RegardError
from regard.core.parts import choose_tiles, mixed, pooled, with_extra_keys
from regard.core.rule import Rule
from regard.core.support import Causal, Documents, Sinks, Window
from regard.run.plan import EXECUTORS
from regard.run.reference import weight_matrix
from tests.strategies import calls


@given(calls(softmax=True, plain=True, most=30), st.integers(1, 5), st.booleans())
def test_extra_keys_share_one_softmax(call, extra, weighed):
    """Attention over old and new keys is the merge of the two, the new ones with their weights."""
    k = torch.randn(call.b, call.g, extra, call.d, dtype=torch.float64)
    v = torch.randn(call.b, call.g, extra, call.e, dtype=torch.float64)
    weights = torch.randn(1, 1, extra, dtype=torch.float64) if weighed else None
    longer = with_extra_keys(call, k, v, weights).checked()
    bias = Rule() if weights is None else Rule(score=regard.Dot() + regard.KeyWeights(weights))
    parts = [
        EXECUTORS["reference"].run(call),
        EXECUTORS["reference"].run(call.replace(k=k, v=v, rule=bias)),
    ]
    want = regard.merge(*parts)
    for name in ("reference", "fused", "folded", "chunked"):
        if EXECUTORS[name].can(longer):
            got = EXECUTORS[name].run(longer)
            torch.testing.assert_close(got.out, want.out)
            torch.testing.assert_close(got.lse, want.lse)


def test_a_weight_of_minus_infinity_removes_a_key(seed):
    x = torch.randn(1, 2, 6, 8)
    call = Call.of(x, x, x, Rule(Causal()))
    gone = with_extra_keys(call, x[:, :, :2], x[:, :, :2], torch.full((1, 1, 2), -torch.inf))
    torch.testing.assert_close(EXECUTORS["reference"].run(gone), EXECUTORS["reference"].run(call))


def test_mixing_gives_differential_attention(seed):
    x, y = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    strength = torch.rand(4)
    a, b = (Call.of(z, z, x, Rule(Causal())) for z in (x, y))
    got = mixed([regard.attend(c.q, c.k, c.v, c.rule) for c in (a, b)], (1.0, -strength))
    weights = weight_matrix(a)[0] - strength[:, None, None] * weight_matrix(b)[0]
    torch.testing.assert_close(got, weights @ x)


def test_pool_score_select_attend(seed):
    """A needle's tile is found, and attention to it is exact inside."""
    q, k, v = torch.randn(1, 2, 64, 16), 0.1 * torch.randn(1, 1, 64, 16), torch.randn(1, 1, 64, 16)
    k[:, :, 16:32] += 3 * q[:, :1, 48:].mean(2, keepdim=True)  # the second tile answers the last
    scores = pooled(q[:, :1], 16) @ pooled(k, 16).transpose(2, 3)
    chosen = choose_tiles(scores, 1, 16, within=Causal())
    assert chosen.chosen[0, 0, 3].tolist() == [False, True, False, False]
    assert not chosen.chosen.triu(1).any()
    rule = Rule(chosen & Causal())
    whole = EXECUTORS["reference"].run(Call.of(q, k, v, rule)).out
    alone = regard.attend(q[:, :, 48:], k[:, :, 16:32], v[:, :, 16:32])
    torch.testing.assert_close(whole[:, :, 48:], alone)


@given(st.integers(1, 20), st.integers(1, 7))
def test_pooling_is_the_mean_of_each_tile(n, size):
    x = torch.randn(1, 1, n, 3, dtype=torch.float64)
    want = torch.stack([part.mean(2) for part in x.split(size, 2)], 2)
    torch.testing.assert_close(pooled(x, size), want)


def test_supports_of_attributes_make_prompts_that_do_not_leak():
    """Instruction, two documents and a question: documents meet the instruction and themselves."""
    parts = torch.tensor([0] * 3 + [1] * 4 + [2] * 4 + [3] * 2)
    table = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]).bool()
    support = Causal() & regard.Kinds(parts, table)
    matrix = support.matrix(13)[0, 0]
    assert not matrix[7:11, 3:7].any()
    assert matrix[12].all()
    same = Causal() & (
        Documents(parts) | Sinks(3) | regard.Attribute((parts == 3).long(), test="before")
    )
    assert torch.equal(same.matrix(13)[0, 0], matrix)


BAD = {
    "extra keys of other heads": lambda c, x: with_extra_keys(c, x[:, :1], x[:, :1]),
    "extra keys beside placed ones": lambda c, x: with_extra_keys(
        c.replace(k_positions=torch.arange(6)), x, x
    ),
    "a gate too few": lambda c, x: mixed((x, x), (1.0,)),
    "no tiles": lambda c, x: choose_tiles(x, 0, 16),
    "scores of rank 3": lambda c, x: choose_tiles(x[0], 1, 16),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    x = torch.randn(1, 2, 6, 8)
    with pytest.raises(RegardError, match="Fix"):
        BAD[case](Call.of(x, x, x, Rule(Causal() & Window(3))), x)
