"""Keys without positions, and summaries of pages, against what they are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regard.core.errors import CapabilityError, RegardError
from regard.memories import Bare, Bounds, LandmarkPages, load, save
from regard.models.rotary import Turn

TURN = Turn(torch.tensor([1.0, 0.3, 0.01]))
PIECES = st.lists(st.integers(1, 7), min_size=1, max_size=8)


@given(
    pieces=PIECES, start=st.integers(0, 500), told=st.booleans(),
    rows=st.lists(st.integers(0, 1), min_size=2, max_size=2), cut=st.integers(0, 5),
)  # fmt: skip
def test_reading_turns_what_was_turned_back(
    pieces: list[int], start: int, told: bool, rows: list[int], cut: int, tmp_path_factory: Any
) -> None:
    n = sum(pieces)
    k, v = torch.randn(2, 1, n, 8), torch.randn(2, 1, n, 8)
    at = torch.stack((torch.arange(n), torch.arange(n) + start)) if told else torch.arange(n)
    turned, memory, done = TURN.turn(k, at), Bare(TURN), 0
    for m in pieces:
        if told:
            memory.stand(at[:, done : done + m])
        memory.extend(turned[:, :, done : done + m], v[:, :, done : done + m])
        done += m
    memory.reorder(torch.tensor(rows))
    memory.crop(max(n - cut, 1))
    place = tmp_path_factory.getbasetemp() / "bare"
    other = load(Bare(TURN), save(memory, place, overwrite=True))
    m = max(n - cut, 1)
    for one in (memory, other):
        torch.testing.assert_close(one.bare().k, k[rows, :, :m], atol=1e-4, rtol=0)
        torch.testing.assert_close(one.read().k, turned[rows, :, :m], atol=1e-4, rtol=0)
        assert torch.equal(one.read().v, v[rows, :, :m])
    held = 2 * 2 * 8 * 4 * m
    assert memory.nbytes >= held + (2 * m * 4 if told and start else 0)


def test_keys_cannot_be_chosen() -> None:
    with pytest.raises(CapabilityError):
        Bare(TURN).choose(torch.zeros(1, 1, 1, dtype=torch.long))
    memory = Bare(TURN)
    memory.stand(torch.arange(3))
    with pytest.raises(RegardError, match="at"):
        memory.extend(*torch.zeros(2, 1, 1, 2, 8))


def turned_by_hand(x: Tensor, at: int, interleaved: bool, last: bool, scale: float) -> Tensor:
    """Pair by pair."""
    y, speeds = x.clone(), [1.0, 0.3, 0.01]
    first = 8 - 6 if last else 0
    for c, speed in enumerate(speeds):
        i, j = (2 * c, 2 * c + 1) if interleaved else (c, c + 3)
        a, b = x[..., first + i], x[..., first + j]
        angle = torch.tensor(speed * at)
        y[..., first + i] = scale * (a * angle.cos() - b * angle.sin())
        y[..., first + j] = scale * (b * angle.cos() + a * angle.sin())
    return y


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("last", [False, True])
@given(at=st.integers(0, 300), by=st.integers(0, 300), scale=st.sampled_from([1.0, 1.3]))
def test_a_turn_is_a_rotation(
    interleaved: bool, last: bool, at: int, by: int, scale: float
) -> None:  # fmt: skip
    turn = Turn(torch.tensor([1.0, 0.3, 0.01]), scale, interleaved, last)
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    near = {"atol": 1e-4, "rtol": 0.0}
    by_hand = turned_by_hand(x, at, interleaved, last, scale)
    torch.testing.assert_close(turn.turn(x, at), by_hand, **near)
    torch.testing.assert_close(turn.back(by_hand, at), x, **near)
    torch.testing.assert_close(turn.move(by_hand, by), turn.turn(x, at + by), **near)


@given(pieces=PIECES, cut=st.integers(0, 12), page=st.integers(1, 5))
def test_summaries_do_not_feel_how_tokens_came(pieces: list[int], cut: int, page: int) -> None:
    n = sum(pieces)
    x = torch.randn(2, 2, n, 3)
    bounds, marks, done = Bounds(page), LandmarkPages(page, lambda p: p.mean(3)), 0
    for m in pieces:
        done += m
        marks.append(x[:, :, len(marks) : done])
        bounds.append(x[:, :, len(bounds) : done])
    m = max(n - cut, 1)
    bounds.crop(m)
    bounds.append(x[:, :, len(bounds) : m])  # a page that was cut, or not full, comes again
    assert (bounds.pages, len(bounds)) == (m // page, m // page * page)
    for t in range(bounds.pages):
        some = x[:, :, t * page : (t + 1) * page]
        assert torch.equal(bounds.low[:, :, t], some.amin(2))
        assert torch.equal(bounds.high[:, :, t], some.amax(2))
    whole = n // page * page
    if m < whole:
        with pytest.raises(CapabilityError, match="dropped"):
            marks.crop(m)
    else:
        marks.crop(m)
        assert len(marks) == m
        marks.append(x[:, :, m:])
    assert (marks.pages, len(marks)) == (n // page, n)
    if whole:
        means = x[:, :, :whole].unflatten(2, (-1, page)).mean(3)
        torch.testing.assert_close(marks.read(), means)
