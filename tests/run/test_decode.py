"""Decoding one token at a time gives the rows of the whole, with no more keys than the horizon."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.core.call import Call
from regard.core.key_forms import Paged
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, RelativeBias, SoftCap
from regard.run.plan import EXECUTORS
from tests.strategies import supports


@st.composite
def sequences(draw, most: int = 24):
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    b, h, n = draw(st.integers(1, 2)), 2, draw(st.integers(1, most))
    support = draw(supports(b, h, n, n))
    q, k, v = (torch.randn(b, heads, n, 4, dtype=torch.float64) for heads in (h, 1, 1))
    scores = [
        Dot(),
        Dot() + Alibi.for_heads(h) >> SoftCap(3.0),
        Dot() + RelativeBias(torch.randn(h, 9)),
    ]
    return q, k, v, Rule(support & regard.Causal(), draw(st.sampled_from(scores)))


@given(sequences())
def test_decode_equals_the_rows_of_the_whole(given_):
    q, k, v, rule = given_
    whole = EXECUTORS["reference"].run(Call.of(q, k, v, rule)).out
    for t in range(q.shape[2]):
        row = regard.attend(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], rule.shift(t))
        torch.testing.assert_close(row, whole[:, :, t : t + 1], rtol=1e-9, atol=1e-9)


@given(sequences())
@settings(max_examples=60)
def test_keys_beyond_the_horizon_can_be_forgotten(given_):
    q, k, v, rule = given_
    whole = EXECUTORS["reference"].run(Call.of(q, k, v, rule)).out
    for t in range(q.shape[2]):
        horizon = rule.horizon(t)
        kept = torch.tensor([j for j in range(t + 1) if j in horizon], dtype=torch.long)
        row = regard.attend(
            q[:, :, t : t + 1],
            k[:, :, kept],
            v[:, :, kept],
            rule,
            q_positions=torch.tensor([t]),
            k_positions=kept,
        )
        torch.testing.assert_close(row, whole[:, :, t : t + 1], rtol=1e-9, atol=1e-9)


@given(sequences(), st.integers(1, 23))
def test_chunks_of_queries_equal_the_whole(given_, cut):
    q, k, v, rule = given_
    whole = regard.attend(q, k, v, rule)
    cut = min(cut, q.shape[2])
    first = regard.attend(q[:, :, :cut], k, v, rule)
    parts = [first]
    if cut < q.shape[2]:
        parts.append(regard.attend(q[:, :, cut:], k, v, rule.shift(cut)))
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-9, atol=1e-9)


def test_an_empty_slot_is_never_met(seed):
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    places = torch.tensor([[[0, 1, -1, 4, 5, -1], [0, -1, -1, 2, 3, 4]]]).expand(2, 2, 6)
    full = regard.attend(
        q, k, v, regard.Causal(), q_positions=torch.tensor([4, 5, 6]), k_positions=places
    )
    poisoned = torch.where((places < 0)[..., None], 1e4, k)
    again = regard.attend(
        q, poisoned, v, regard.Causal(), q_positions=torch.tensor([4, 5, 6]), k_positions=places
    )
    torch.testing.assert_close(full, again)


def test_what_lies_behind_the_end_of_a_row_is_not_read() -> None:
    pages = torch.randn(4, 2, 8, 16)
    pages[1, :, 3:] = torch.nan
    table = torch.tensor([[[0, 1]], [[2, 3]]], dtype=torch.int32)
    lengths = torch.tensor([[11], [16]], dtype=torch.int32)
    keys = Paged(pages, pages, table, lengths)
    out = regard.attend(torch.randn(2, 4, 1, 16), keys)
    assert bool(out.isfinite().all())
