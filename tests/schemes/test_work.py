"""Layouts cut a text into parts, and what is needed of each is what the rule says, pair by pair."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.rule import Rule
from regard.core.support import Blocks, Causal, Everything, PrefixLM, Sinks, Window
from regard.core.support import documents_from_lengths as documents
from regard.schemes import Contiguous, Striped, ZigZag, balanced
from regard.schemes.simulation import Machine, simulate
from regard.schemes.work import work_of

SUPPORTS: dict[str, Any] = {
    "all": Everything(), "causal": Causal(), "window": Causal() & Window(7),
    "sinks": Causal() & (Window(9) | Sinks(3)), "blocks": Causal() & Blocks(16),
    "both ways": Window(4, 4), "prefix": PrefixLM(5),
}  # fmt: skip
LAYOUTS = {
    "contiguous": lambda rule, n, w: Contiguous(n, w), "zigzag": lambda rule, n, w: ZigZag(n, w),
    "striped": lambda rule, n, w: Striped(n, w, block=3), "balanced": balanced,
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
@given(n=st.integers(0, 300), world=st.integers(1, 9))
def test_each_position_is_on_one_rank_in_rising_order(kind: str, n: int, world: int) -> None:
    layout = LAYOUTS[kind](Rule(Causal()), n, world)
    parts = [layout.positions(rank) for rank in range(world)]
    assert torch.cat(parts).sort().values.tolist() == list(range(n))
    assert all(bool((x.diff() > 0).all()) for x in parts)


@pytest.mark.parametrize("kind", LAYOUTS)
@given(name=st.sampled_from(sorted(SUPPORTS)), n=st.integers(1, 200), world=st.integers(1, 5),
       cut=st.integers(1, 199))  # fmt: skip
def test_what_is_needed_is_what_the_rule_allows(
    kind: str, name: str, n: int, world: int, cut: int
) -> None:
    support = SUPPORTS[name]
    if cut < n:
        support = support & documents([cut, n - cut])
    rule = Rule(support)
    layout = LAYOUTS[kind](rule, n, world)
    work, allowed = work_of(rule, layout, layout), support.matrix(n)[0, 0]
    at = [layout.positions(rank) for rank in range(world)]
    for r in range(world):
        for s in range(world):
            pairs = allowed[at[r]][:, at[s]]
            needed, asking = work.needed[r][s], work.asking[r][s]
            # Exactly what is needed, but for tiles of which another row is full.
            assert set(pairs.any(0).nonzero().flatten().tolist()) <= set(needed.tolist())
            assert set(pairs.any(1).nonzero().flatten().tolist()) <= set(asking.tolist())
            assert work.pairs[r][s] >= int(pairs.sum())
            if not bool(pairs.any()):
                assert len(needed) == len(asking) == 0


def test_a_window_is_sent_and_no_more() -> None:
    """Window 512 at 16k over 8 ranks: two neighbors' worth would be 4,096 keys."""
    rule = Rule(Causal() & Window(512))
    for layout in (Contiguous(16_384, 8), ZigZag(16_384, 8)):
        sent = work_of(rule, layout, layout).rows_sent()
        most = 511 if isinstance(layout, Contiguous) else 1022
        assert max(sent) == most <= 2 * 2048
    assert sum(work_of(rule, Contiguous(16_384, 8), Contiguous(16_384, 8)).rows_sent()) == 7 * 511


@pytest.mark.parametrize("name", ["causal", "sinks", "documents"])
def test_balance_is_counted_work(name: str) -> None:
    lengths = [100, 700, 24, 200]
    support = Causal() & documents(lengths) if name == "documents" else SUPPORTS[name]
    rule = Rule(support)

    def uneven(layout: Any) -> float:
        rows = support.matrix(1024)[0, 0].sum(-1)
        pairs = [int(layout.take(rows, rank).sum()) for rank in range(4)]
        return max(pairs) * len(pairs) / sum(pairs)

    assert uneven(balanced(rule, 1024, 4)) < 1.1
    assert uneven(balanced(rule, 1024, 4)) <= uneven(Contiguous(1024, 4)) + 0.05
    if name == "causal":
        assert uneven(ZigZag(1024, 4)) < 1.1 < uneven(Contiguous(1024, 4))


def test_a_simulation_counts_what_ranks_count() -> None:
    rule, n, world = Rule(Causal() & Window(512)), 16_384, 8
    layout = Contiguous(n, world)
    each = 2 * 8 * 128 * 2  # keys and values of 8 heads of 128, two bytes a number
    counted = max(work_of(rule, layout, layout).rows_sent()) * each
    (found,) = [
        x for x in simulate(rule, n, Machine(world))
        if (x.scheme, x.layout) == ("ring", "contiguous")
    ]  # fmt: skip
    assert abs(found.bytes / counted - 1) < 0.02


def test_a_simulation_reaches_1024_devices_and_10_million_tokens() -> None:
    best = simulate(Rule(Causal()), 10_000_000, Machine(1024, 128))[0]
    assert best.balance > 0.95
    assert best.scheme == "ring"
