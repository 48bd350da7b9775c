"""Tile maps kept as runs say what written maps say, and cost a row of tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.core import tilemap
from regard.core.runs import Lines, Runs
from regard.core.support import Blocks, Causal, Everything, Sinks, Support, Window
from regard.core.tilemap import EMPTY, FULL, PARTIAL, Grid, RunMap, tile_states
from regard.run import cutting
from regard.run.plan import EXECUTORS
from tests.strategies import calls, weighs


@st.composite
def analytic(draw, most: int) -> Support:
    """Supports with runs, and what the algebra makes of them."""
    few = st.integers(1, most)
    leaf = st.one_of(
        st.just(Causal()),
        st.just(Everything()),
        st.builds(Window, few, st.none() | few),
        st.builds(Sinks, few),
        st.builds(Blocks, few, st.integers(0, 2), st.integers(0, 2)),
    )
    support = draw(leaf)
    for _ in range(draw(st.integers(0, 3))):
        other = draw(leaf)
        how = draw(st.integers(0, 3))
        support = [support & other, support | other, support & ~other, ~support | other][how]
    return support.shift(draw(st.sampled_from([0, 0, 3])))


@given(data=st.data())
def test_runs_say_what_cover_says(data):
    n, m = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    size = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    support, offset = data.draw(analytic(40)), data.draw(st.sampled_from([0, 5]))
    device = torch.device("cpu")
    runs = support.runs(Lines.over(n, m, size, offset, device))
    assert runs is not None
    found = RunMap(runs, size, n, m)
    want = tile_states(support, Grid.over(n, m, size, 1, 1, device).shift(offset))
    matrix = support.shift(offset).matrix(n, m)[0, 0]
    for tq in range(want.shape[2]):
        for tk in range(want.shape[3]):
            part = matrix[tq * size[0] : (tq + 1) * size[0], tk * size[1] : (tk + 1) * size[1]]
            state = int(found.state[0, 0, tq, tk])
            assert not part.any() if state == EMPTY else state != FULL or part.all()
    # Certain where written maps are certain: nothing more is looked into.
    assert ((found.state == PARTIAL) <= (want == PARTIAL)).all()
    for state in (EMPTY, PARTIAL, FULL):
        assert found.count(state) == int((found.state == state).sum())
    keys, counts = found.some.listed(want.shape[2])
    for row, (some, count) in enumerate(zip(keys, counts, strict=True)):
        assert some[:count].tolist() == (found.state[0, 0, row] != EMPTY).nonzero()[:, 0].tolist()


BETWEEN = st.tuples(st.integers(0, 9), st.integers(0, 9))


# Several rows: where one has more runs than another, the other's empty ones must say nothing.
@given(st.data(), st.integers(1, 3))
def test_the_algebra_of_runs_is_that_of_sets(data, rows):
    def drawn() -> tuple[Runs, list[set[int]]]:
        pairs = [data.draw(BETWEEN) for _ in range(rows)]
        starts, stops = (torch.tensor(x)[:, None] for x in zip(*pairs, strict=True))
        return Runs.between(starts, stops, 9), [set(range(*x)) for x in pairs]

    def outside(sets: list[set[int]]) -> list[set[int]]:
        return [set(range(9)) - x for x in sets]

    found, want = drawn()
    for _ in range(data.draw(st.integers(0, 5))):
        other, own = drawn()
        both = list(zip(want, own, strict=True))
        match data.draw(st.sampled_from(["and", "or", "not or", "not and"])):
            case "and":
                found, want = found & other, [a & b for a, b in both]
            case "or":
                found, want = found | other, [a | b for a, b in both]
            case "not or":
                found, want = ~found | ~other, outside([a & b for a, b in both])
            case _:
                found, want = ~found & other, [b - a for a, b in both]
        columns, counts = found.listed(rows)
        got = [row[:count].tolist() for row, count in zip(columns, counts, strict=True)]
        assert got == [sorted(x) for x in want]


def test_an_empty_run_does_not_stretch_the_one_before_it():
    """Row 1 has two runs where row 0 has three: key 7 on was full there, and is not allowed."""
    support = ~Window(5) | Causal()
    runs = support.runs(Lines.over(2, 11, (1, 1), 5, torch.device("cpu")))
    state = RunMap(runs, (1, 1), 2, 11).state[0, 0]
    assert ((state == FULL) == support.shift(5).matrix(2, 11)[0, 0]).all()


@given(data=st.data())
def test_folds_of_runs_equal_the_reference(
    data,
):
    """The same executor with maps kept as runs from the first tile on."""
    call = data.draw(calls(softmax=False, most=150))
    support = data.draw(analytic(80))
    weigh = data.draw(weighs(call.h))
    rule = regard.Rule(support, call.rule.score, weigh, call.rule.offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "WRITTEN", 0)
        patch.setattr(tilemap, "WRITTEN", 0)
        for own in (call.replace(rule=rule), call.replace(rule=regard.Rule(support))):
            # Derived things are shared by equal supports: none may come from written maps.
            regard.core.value._shared.clear()
            if not EXECUTORS["folded"].can(own):
                continue
            found, want = EXECUTORS["folded"].run(own), EXECUTORS["reference"].run(own)
            torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
            if own.rule is not rule:
                given_ = (own.q, own.k, own.v)
                grads = [
                    torch.autograd.grad(x.out.square().sum(), given_, allow_unused=True)
                    for x in (found, want)
                ]
                zero = [
                    [
                        torch.zeros_like(q) if g is None else g
                        for g, q in zip(x, given_, strict=True)
                    ]
                    for x in grads
                ]
                torch.testing.assert_close(*zero, rtol=1e-9, atol=1e-9)
    regard.core.value._shared.clear()


def test_a_million_tokens_take_a_moment_to_plan():
    """Nothing of the size of the plane, or of a row of it for each row, is ever made."""
    import resource
    import time

    q = torch.zeros(1, 1, 1, 1).expand(1, 8, 1_000_000, 64)
    rules = [Causal() & Window(64), Causal() & (Window(64) | Sinks(4))]
    regard.plan(q[:, :, :5000], q[:, :, :5000], q[:, :, :5000], rules[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = []
    for rule in rules:
        start = time.process_time()
        plan = regard.plan(q, q, q, rule)
        took.append(time.process_time() - start)
        assert plan.executor == "folded"
        assert rule.tiles(1_000_000, 1_000_000).density < 3e-4
    assert max(took) < 0.5  # 59 seconds once; benchmarks/length.py measures
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_what_has_no_runs_is_refused_and_not_written_out():
    q = torch.zeros(1, 1, 1, 1).expand(1, 8, 1_000_000, 64)
    lattice = regard.Neighborhood((7, 7), (1000, 1000))
    plan = regard.plan(q, q, q, lattice)
    assert "its map of tiles" in plan.ruled_out["folded"]


@pytest.mark.parametrize(
    "rule", [Causal() & Window(64), Causal() & (Window(50) | Sinks(4))], ids=str
)
def test_long_rows_equal_those_of_a_short_text(rule):
    """Rows far into 100,000 tokens equal those that see only the keys they may."""
    n, near = 100_000, 128
    q, k = torch.randn(1, 1, n, 8), torch.randn(1, 1, n, 8)
    out = regard.attend(q, k, k, rule, executor="folded")
    kept = torch.cat([torch.arange(4), torch.arange(n - near, n)])
    want = regard.attend(
        q[:, :, -32:], k[:, :, kept], k[:, :, kept], rule, executor="reference",
        q_positions=torch.arange(n - 32, n), k_positions=kept,
    )  # fmt: skip
    torch.testing.assert_close(out[:, :, -32:], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [65, 128, 150])
@pytest.mark.parametrize(
    "support",
    [
        regard.Causal() | regard.Sinks(1),
        regard.Causal() & (regard.Window(5) | regard.Sinks(1)),
        (regard.Causal() & regard.Sinks(3)) | regard.Window(70, 90),
        ~regard.Window(9) | regard.Sinks(2),
    ],
    ids=str,
)
def test_tiles_told_by_their_place_are_told_by_distance_too(support, n):
    """Two tiles of queries that meet the first keys from afar and from near have two masks."""
    for m in range(2, 151, 7):
        q, k = torch.randn(1, 1, n, 4).double(), torch.randn(1, 1, m, 4).double()
        found = regard.attend(q, k, k, support, executor="folded")
        torch.testing.assert_close(found, regard.attend(q, k, k, support, executor="reference"))
