"""Weights are what their formulas say, and parts of every weigh merge to their union."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.partial import Partial, merge, nothing
from regard.core.rule import Rule
from regard.core.support import Causal, Window
from regard.core.weigh import Laplace, Normalised, Relu, Sigmoid, Signed, Softmax
from regard.run.api import attend, partial

WEIGHS = [Softmax(), Signed(), Sigmoid(-1.0), Relu(1, 0.5), Relu(2, 0.1), Relu(3, 0.1), Laplace()]
every_weigh = pytest.mark.parametrize("weigh", WEIGHS, ids=repr)
seeds = st.integers(0, 2**31 - 1)


def normal(*shape: int, learned: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(learned)


def some_rows(n: int, m: int, e: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores with removed pairs, a mask with an empty first row, and values."""
    scores, allowed = 3 * normal(1, 2, n, m), torch.rand(1, 2, n, m) < 0.7
    scores = scores.masked_fill(torch.rand_like(scores) < 0.1, -torch.inf)
    allowed[:, :, 0] = False
    return scores, allowed, normal(1, 2, m, e)


def same(found: Partial, expected: Partial) -> None:
    torch.testing.assert_close(found.out, expected.out)
    assert (found.lse is None) == (expected.lse is None)
    if expected.lse is not None:
        torch.testing.assert_close(found.lse, expected.lse)


@every_weigh
def test_weights_are_what_their_formulas_say(weigh, seed):
    scores, allowed, v = some_rows(4, 9, 3)
    formula = {
        Softmax: lambda s: torch.exp(s),
        Signed: lambda s: s.sign() * torch.exp(s.abs()),
        Sigmoid: lambda s: 1 / (1 + torch.exp(-(s + getattr(weigh, "bias", 0)))),
        Laplace: lambda s: (1 + torch.erf((s - 0.5**0.5) * (2 * math.pi) ** 0.5)) / 2,
        Relu: lambda s: weigh.scale * max(float(s), 0.0) ** weigh.power * torch.ones_like(s),
    }[type(weigh)]
    for h in range(2):
        for i in range(4):
            met = [j for j in range(9) if allowed[0, h, i, j] and scores[0, h, i, j] > -torch.inf]
            amounts = torch.zeros(9, dtype=torch.float64)
            for j in met:
                amounts[j] = formula(scores[0, h, i, j])
            if isinstance(weigh, Normalised) and met:
                amounts = amounts / amounts.abs().sum()
            out = weigh.whole(scores, allowed, v).out[0, h, i]
            torch.testing.assert_close(out, amounts @ v[0, h])


# Parts


def part_of(q, k, v, keep, weigh) -> Partial:
    scores = q @ k.transpose(-1, -2)
    return weigh.whole(scores, keep.expand_as(scores), v)


@every_weigh
@given(data=st.data(), seed=seeds)
def test_merging_any_parts_in_any_order_equals_the_union(weigh, data, seed):
    torch.manual_seed(seed)
    m = data.draw(st.integers(1, 30))
    scores, allowed, v = some_rows(3, m, 2)
    owner = torch.randint(0, data.draw(st.integers(1, 5)), (m,))
    owners = data.draw(st.permutations(range(5)))  # some may own no key
    parts = [weigh.whole(scores, allowed & (owner == x), v) for x in owners]
    whole = weigh.whole(scores, allowed, v)
    same(merge(*parts), whole)
    same(merge(merge(*parts[:2]), merge(*parts[2:])), whole)
    same(merge(parts[0], merge(parts[1], merge(*parts[2:]))), whole)


@every_weigh
def test_nothing_is_the_identity_on_both_sides(weigh, seed):
    scores, allowed, v = some_rows(3, 7, 2)
    part = weigh.whole(scores, allowed, v)
    none = nothing(part.out, sums=weigh.sums)
    for found in (merge(none, part), merge(part, none), merge(part)):
        same(found, part)
    same(merge(none, none, none), none)


@pytest.mark.parametrize("weigh", [Softmax(), Sigmoid(-1.0)], ids=repr)
def test_gradients_flow_through_a_merge_as_through_the_union(weigh, seed):
    q, k, v = (normal(1, 2, 6, 3, learned=True) for _ in range(3))
    seen = torch.ones(6, 6).tril().bool()
    early = torch.arange(6) < 3
    whole = part_of(q, k, v, seen, weigh)
    both = merge(part_of(q, k, v, seen & early, weigh), part_of(q, k, v, seen & ~early, weigh))
    d_out = normal(1, 2, 6, 3)
    expected = torch.autograd.grad((whole.out * d_out).sum(), (q, k, v))
    found = torch.autograd.grad((both.out * d_out).sum(), (q, k, v))
    torch.testing.assert_close(found, expected)


def test_parts_without_any_key_give_zeros_and_no_nan_backward(seed):
    q, k, v = (normal(1, 2, 4, 3, learned=True) for _ in range(3))
    never = torch.zeros(4, 4, dtype=torch.bool)
    parts = [part_of(q, k, v, never, Softmax()) for _ in range(3)]
    both = merge(*parts)
    assert bool((both.out == 0).all())
    assert bool((both.lse == -torch.inf).all())
    for grad in torch.autograd.grad(both.out.sum(), (q, k, v)):
        assert bool((grad == 0).all())


def test_the_door_gives_parts_that_merge(seed):
    q, k, v = normal(1, 4, 12, 3), normal(1, 2, 12, 3), normal(1, 2, 12, 3)
    rule = Rule(Causal() & Window(5), weigh=Softmax(sink=normal(4)))
    places = torch.arange(12)
    parts = [
        partial(q, k[:, :, c], v[:, :, c], rule, q_positions=places, k_positions=places[c])
        for c in (slice(0, 3), slice(3, 4), slice(4, 12))
    ]
    torch.testing.assert_close(rule.weigh.apply_sink(merge(*parts)).out, attend(q, k, v, rule))
