"""Supports mean what their definition says; what they say of tiles and of the future is safe."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.rule import Rule
from regard.core.support import (
    Blocks,
    Causal,
    Dilated,
    Documents,
    Padding,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sinks,
    Strided,
    Where,
    Window,
)
from regard.core.tilemap import EMPTY, FULL
from regard.core.value import Value
from tests.strategies import leaves, neighborhoods, supports

ORACLES = {
    "causal": (Causal(), lambda i, j: j <= i),
    "window": (Window(3), lambda i, j: abs(i - j) < 3),
    "window to both sides": (Window(4, 2), lambda i, j: -4 < j - i < 2),
    "sinks": (Sinks(2), lambda i, j: j < 2),
    "dilated": (Dilated(3), lambda i, j: (i - j) % 3 == 0),
    "strided": (Strided(4, 1), lambda i, j: j >= 1 and (j - 1) % 4 == 0),
    "blocks": (Blocks(3, 1), lambda i, j: 0 <= i // 3 - j // 3 <= 1),
    "documents": (Documents([0] * 5 + [1] * 9), lambda i, j: (i < 5) == (j < 5)),
    "prefix": (PrefixLM(torch.tensor(4)), lambda i, j: j <= i or j < 4),
    "continuations": (
        SharedPrefix(4, (5, 5)),
        lambda i, j: j <= i and (j < 4 or (j < 9) == (i < 9)),
    ),
    "sliding window with sinks": (
        Causal() & (Window(3) | Sinks(2)),
        lambda i, j: j <= i and (i - j < 3 or j < 2),
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_meaning(name):
    support, met = ORACLES[name]
    want = [[bool(met(i, j)) for j in range(14)] for i in range(14)]
    assert support.matrix(14)[0, 0].tolist() == want


def window_of(x, size, kernel, dilation, stride, causal):
    """Keys that query x meets on one axis, from the definition of natten and GNA."""
    group, place = x % dilation, x // dilation
    length = len(range(group, size, dilation))
    leader = place // stride * stride
    if causal:
        leader = min(leader + stride - 1, length - 1)
        keys = [p for p in range(length) if p <= place and leader - p < kernel]
    else:
        leader = min(leader + stride // 2, length - 1)
        first = max(leader - kernel // 2, 0)
        first = min(first, length - kernel)
        keys = list(range(first, first + kernel))
    return {group + p * dilation for p in keys}


@given(st.integers(1, 36).flatmap(lambda n: neighborhoods(n)))
def test_neighborhoods_slide_and_stop_at_edges(support):
    n = int(torch.tensor(support.lattice).prod())
    axes = list(
        zip(
            support.lattice,
            support.kernel,
            support.dilation,
            support.stride,
            support.causal,
            strict=True,
        )
    )
    matrix = support.matrix(n)[0, 0]
    for i in range(n):
        where = [int(x) for x in support.coordinates(torch.tensor(i))]
        windows = [window_of(x, *axis) for x, axis in zip(where, axes, strict=True)]
        for j in range(n):
            key = [int(y) for y in support.coordinates(torch.tensor(j))]
            assert bool(matrix[i, j]) == all(y in w for y, w in zip(key, windows, strict=True))


@st.composite
def placed(draw, most=20):
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    b, h = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    n, m = draw(st.integers(1, most)), draw(st.integers(1, most))
    return draw(supports(b, h, max(n, m), max(n, m))), n, m


@given(placed(), st.integers(1, 7), st.integers(1, 7), st.integers(0, 3))
def test_tiles_are_certain_of_empty_and_full(given_, side_q, side_k, offset):
    support, n, m = given_
    n = max(1, n - offset)
    tiles = Rule(support, offset=offset).tiles(n, m, (side_q, side_k)).state
    matrix = support.shift(offset).matrix(n, m)
    for tq in range(tiles.shape[2]):
        for tk in range(tiles.shape[3]):
            part = matrix[:, :, tq * side_q : (tq + 1) * side_q, tk * side_k : (tk + 1) * side_k]
            state = tiles[:, :, tq, tk].expand(part.shape[:2])
            assert not part.flatten(2).any(-1)[state == EMPTY].any()
            assert part.flatten(2).all(-1)[state == FULL].all()


@given(placed())
def test_no_later_query_needs_a_key_beyond_the_horizon(given_):
    support, n, m = given_
    matrix = support.matrix(n, m).flatten(0, 1).any(0)
    for i in range(n):
        horizon = support.horizon(i)
        for j in range(m):
            assert j in horizon or not matrix[i:, j].any()


@given(placed(), st.integers(0, 9))
def test_shifting_gives_later_rows(given_, offset):
    support, n, m = given_
    offset = min(offset, n - 1)
    whole = support.matrix(n, m)
    assert torch.equal(support.shift(offset).matrix(n - offset, m), whole[:, :, offset:])


@given(placed(), st.integers(0, 9), st.integers(0, 9))
def test_counting_from_later_tokens_gives_the_rest_of_the_plane(given_, i, j):
    support, n, m = given_
    i, j = min(i, n - 1), min(j, m - 1)
    rest = support.counted_from(i, j)
    if rest is None:
        return  # it asks for places, and calls are given positions
    want, size = support.matrix(n, m)[:, :, i:, j:], (n - i, m - j)
    assert torch.equal(rest.matrix(*size).expand(want.shape), want)
    state = rest.tiles(*size, 3).state
    for t, u in torch.cartesian_prod(*(torch.arange(x) for x in state.shape[2:])).tolist():
        part = want[:, :, 3 * t : 3 * t + 3, 3 * u : 3 * u + 3].flatten(2)
        here = state[:, :, t, u].expand(part.shape[:2])
        assert not part.any(-1)[here == EMPTY].any()
        assert part.all(-1)[here == FULL].all()


def test_what_blocks_of_ranks_are_cut_from_can_be_counted_from_anywhere():
    ids = torch.arange(32) // 5
    causal = Causal()
    for support in (
        causal, causal & Window(4), causal & Documents(ids), causal & (Window(4) | Sinks(2)),
        (causal & Documents(ids)).shift(3), Padding(ids > 0) & causal, ~Documents(ids) | Window(3),
        PerHead([causal & Window(3), Documents(ids)]),
    ):  # fmt: skip
        for i, j in ((0, 0), (3, 0), (7, 7), (20, 4), (4, 20)):
            rest = support.counted_from(i, j)
            assert rest is not None, support
            want = support.matrix(28, 32)[:, :, i:, j:]
            assert torch.equal(rest.matrix(28 - i, 32 - j).expand(want.shape), want)


@given(st.data())
def test_the_algebra_is_that_of_sets(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31 - 1)))
    a, b, c = (data.draw(leaves(1, 1, 9, 9)) for _ in range(3))

    def m(s):
        return s.matrix(9)[0, 0]

    assert torch.equal(m(~(a & b)), m(~a | ~b))
    assert torch.equal(m(~(a | b)), m(~a & ~b))
    assert torch.equal(m(a & (b | c)), m((a & b) | (a & c)))
    assert torch.equal(m(~~a), m(a))
    assert torch.equal(m(a & a), m(a))


@given(placed(most=8))
def test_values_survive_json_pickle_and_copy(given_):
    support, n, m = given_
    rule = Rule(support)
    again = Value.from_json(rule.to_json(), trust=("tests.strategies",))
    assert again == rule
    assert hash(again) == hash(rule)
    assert repr(again) == repr(rule)
    for other in (pickle.loads(pickle.dumps(rule)), copy.deepcopy(rule)):
        assert other == rule
        assert torch.equal(other.support.matrix(n, m), support.matrix(n, m))


def test_other_values_are_not_equal():
    assert Window(3) != Window(4)
    assert Rule(Causal()) != Rule(Causal(), offset=1)
    assert Documents([0, 1]) != Documents([0, 0])
    assert len({Causal(), Causal(), Window(2)}) == 2


def test_repr_reads_like_the_code():
    assert repr(Causal() & (Window(1024) | Sinks(4))) == "Causal() & (Window(1024) | Sinks(4))"
    assert repr(~(Causal() & Window(2))) == "~(Causal() & Window(2))"
    mixed = PerHead((Causal(), Causal(), Window(2)))
    assert repr(mixed) == "PerHead([Causal()] * 2 + [Window(2)])"


def test_a_drawing_shows_the_mask(tmp_path):
    assert Rule(Causal()).draw(3) == "#..\n##.\n###"
    pytest.importorskip("matplotlib")
    picture = tmp_path / "mask.png"
    Rule(Where(lambda b, h, i, j: i != j)).draw(9, to=str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
