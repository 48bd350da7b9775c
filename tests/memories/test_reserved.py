"""Reserved addresses: a memory like others, and as much of the machine's as is written."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.core.errors import RegardError
from regard.memories.paged import PoolError
from regard.memories.reserved import Reservation, Reserved
from tests.memories import test_conformance as laws

GROUP = 4096


def rooms_of(slots: int = 2, longest: int = 200, layers: int = 1, **how: Any) -> Reservation:
    return Reservation(slots, longest, layers, laws.G, laws.D, group=GROUP, **how)


@given(steps=laws.STEPS, seed=st.integers(0, 1000))
def test_it_holds_what_a_list_holds(
    steps: list[tuple[Any, ...]], seed: int, tmp_path_factory: Any
) -> None:
    rooms = [rooms_of() for _ in range(2)]
    pairs = iter(rooms * 50)

    def make() -> Reserved:
        one = next(pairs)
        for slot in (0, 1):
            one.close(slot)
        return Reserved(one, 0, [one.open(), one.open()])

    laws.MAKERS["reserved"] = (make, laws.EXACT)
    try:
        laws.drive("reserved", steps, seed, tmp_path_factory.getbasetemp())
    finally:
        del laws.MAKERS["reserved"]


@given(lengths=st.lists(st.integers(1, 200), min_size=3, max_size=3), layers=st.integers(1, 2))
def test_no_more_is_mapped_than_a_group_for_each_tensor(lengths: list[int], layers: int) -> None:
    rooms, used = rooms_of(3, layers=layers), 0
    for n in lengths:
        slot = rooms.open()
        x = torch.randn(1, laws.G, n, laws.D)
        for layer in range(layers):
            Reserved(rooms, layer, [slot]).extend(x, x)
        used += 2 * layers * x.nbytes
    assert used <= rooms.nbytes < used + 3 * 2 * layers * GROUP
    before = rooms.maps
    for slot in range(3):
        rooms.close(slot)
    for n in sorted(lengths, reverse=True):  # the fullest slot is given first
        slot = rooms.open()
        Reserved(rooms, 0, [slot]).extend(*torch.randn(2, 1, laws.G, n, laws.D))
    assert rooms.maps == before


@pytest.mark.parametrize("slots", [[1, 2], [2, 0]])
def test_attention_over_a_view_is_attention_over_a_tensor(slots: list[int]) -> None:
    rooms = rooms_of(3)
    memory = Reserved(rooms, 0, slots)
    k, v, q = torch.randn(2, 2, 77, 8), torch.randn(2, 2, 77, 8), torch.randn(2, 4, 1, 8)
    memory.extend(k, v)
    read = memory.read()
    assert torch.equal(regard.attend(q, read.k, read.v), regard.attend(q, k, v))
    assert (read.k.untyped_storage().nbytes() >= rooms.reserved) == (slots == [1, 2])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_reclaimed_is_given_back() -> None:
    def resident() -> int:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(x.split()[1]) << 10 for x in file if x.startswith("VmRSS"))

    rooms = Reservation(4, 1 << 16, 1, 8, 64, limit=80 << 20)
    slot, start = rooms.open(), resident()
    rooms.ahead(slot, 1 << 14).result()
    assert rooms.nbytes == 64 << 20 <= resident() - start + (4 << 20)
    with pytest.raises(PoolError, match="limit"):
        rooms.need(rooms.open(), 1 << 14)
    rooms.close(slot)
    rooms.need(1, 1 << 14)  # the closed slot makes room
    assert rooms.nbytes == 64 << 20
    rooms.close(1)
    assert rooms.reclaim() == 64 << 20
    assert resident() - start < 8 << 20
    assert not rooms.tensors(0)[0][1, :5].any()


def test_wrong_uses_are_told() -> None:
    rooms = rooms_of(1)
    rooms.open()
    x = torch.randn(1, laws.G, 3, laws.D)
    wrong: list[Any] = [
        rooms.open, lambda: rooms.need(0, 201), lambda: Reservation(1, 9, 1, 2, 8, group=5000),
        lambda: Reserved(rooms, 0, [0]).extend(x.double(), x.double()),
        lambda: Reserved(rooms, 0, [0]).extend(x[:, :1], x[:, :1]),
        lambda: Reserved(rooms, 0, [0]).reorder(torch.tensor([0, 0])),
        lambda: Reserved(rooms, 0, [0]).read(),
        lambda: Reservation(1 << 20, 1 << 40, 100, 128, 128),
    ]  # fmt: skip
    for use in wrong:
        with pytest.raises((RegardError, TypeError)):
            use()
