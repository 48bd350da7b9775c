"""The cheapest choice is what trying all choices finds."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.errors import RegardError
from regard.policies.choosing import cheapest


@given(st.integers(0, 1 << 30), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3),
       st.floats(0.05, 0.95), st.booleans())  # fmt: skip
def test_no_choice_is_cheaper(seed: int, h: int, c: int, k: int, share: float, whole: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    losses = torch.randn(h, c, generator=draw).double()
    costs = torch.rand(h, c, k, generator=draw).double()
    if whole:  # numbers that meet often
        losses, costs = (4 * losses).round(), (4 * costs).round()
    low, high = costs.amin(1).sum(0), costs.amax(1).sum(0)
    budgets = (low + share * (high - low)).clamp(min=1e-3).tolist()
    best = torch.inf
    for one in product(range(c), repeat=h):
        paid = costs[torch.arange(h), list(one)].sum(0)
        if all(float(x) <= y * (1 + 1e-9) for x, y in zip(paid, budgets, strict=True)):
            best = min(best, float(losses[torch.arange(h), list(one)].sum()))
    if best == torch.inf:  # each budget can be met, and not all at once
        return
    found = cheapest(losses, costs, budgets)
    paid = costs[torch.arange(h), list(found.chosen)].sum(0)
    assert found.loss == pytest.approx(best, abs=1e-5)
    assert found.bound == found.loss
    assert all(float(x) <= y + 1e-6 for x, y in zip(paid, budgets, strict=True))


def test_many_heads_and_two_budgets_are_within_the_bound() -> None:
    draw = torch.Generator().manual_seed(0)
    costs = torch.rand(256, 12, 1, generator=draw)
    losses = (1 / (0.05 + costs[..., 0])) * torch.rand(256, 1, generator=draw)
    found = cheapest(losses, torch.cat((costs, costs.sqrt()), 2), [60.0, 140.0])
    assert found.loss - found.bound < 1e-3 * abs(found.bound)


def test_a_budget_that_is_too_small_is_told() -> None:
    with pytest.raises(RegardError, match="the cheapest choice"):
        cheapest(torch.zeros(2, 1), torch.ones(2, 1, 1), [1.0])
    with pytest.raises(RegardError, match="costs"):
        cheapest(torch.zeros(2, 1), torch.ones(2, 1), [1.0])
