"""Who owns what: a memory writes to nothing that it was given, and shares nothing that it gave."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import regard.memories
from regard.core.errors import CapabilityError
from regard.core.rotary import Rotation, turned
from regard.core.spans import Spans
from regard.memories import (
    Bare,
    Bounds,
    Hosted,
    Kept,
    KeyMemory,
    LandmarkPages,
    LowRank,
    Mapped,
    NearKeys,
    Plain,
    Quantized,
    Reservation,
    Reserved,
    Ring,
    Shared,
    SomeKeys,
    Split,
    TokenStore,
)
from tests.memories.test_conformance import MAKERS, D, G


def reserved() -> Reserved:
    rooms = Reservation(slots=2, longest=256, layers=1, heads=G, size=D)
    return Reserved(rooms, 0, [rooms.open(), rooms.open()])


class Turn:
    """Positions that turn keys."""

    def turn(self, x: Tensor, at: Tensor) -> Tensor:
        return turned(x, Rotation().angles(at, D))

    def back(self, x: Tensor, at: Tensor) -> Tensor:
        return turned(x, Rotation().angles(-at, D))


OTHERS: dict[str, Callable[[], KeyMemory]] = {
    "reserved": reserved, "unrotated": lambda: Bare(Turn()),
    "near keys": lambda: NearKeys(window=5, sinks=2), "some keys": lambda: SomeKeys(heads=(1,)),
    "a memory a head": lambda: Split.by_head(G),
    "split": lambda: Split([((1,), Kept()), ((0,), Ring(window=5, sinks=1))]),
}  # fmt: skip
ALL = {**{name: make for name, (make, _) in MAKERS.items()}, **OTHERS}
# Its keys are in other processes: tests/policies/test_remote_attention.py.
ELSEWHERE = {"Remote"}
STORES: dict[str, Callable[[], TokenStore]] = {
    "plain": Plain, "hosted": Hosted, "mapped": Mapped,
    "quantized": lambda: Quantized(8, "channel", 4, 2), "low rank": lambda: LowRank(D - 1, 0),
    "bounds": lambda: Bounds(2), "landmarks": lambda: LandmarkPages(2, lambda pages: pages.mean(3)),
}  # fmt: skip
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.integers(1, 9), st.integers(0, 3)),
        st.tuples(st.just("extend"), st.just(1), st.just(0)),
        st.tuples(st.just("crop"), st.integers(0, 9)),
        st.tuples(st.just("reorder"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        st.tuples(st.just("settle")),
        st.tuples(st.just("forget"), st.integers(1, 9)),
        st.tuples(st.just("choose"), st.integers(1, 6)),
    ),
    min_size=2,
    max_size=10,
)


def subclasses(kind: type) -> set[type]:
    for module in pkgutil.iter_modules(regard.memories.__path__, "regard.memories."):
        importlib.import_module(module.name)
    found, todo = set(), [kind]
    while todo:
        todo += (more := todo.pop().__subclasses__())
        found |= {x for x in more if x.__module__.startswith("regard.memories")}
    return found


def test_every_memory_and_store_is_in_the_table() -> None:
    made = {type(make()).__name__ for make in ALL.values()}
    assert {x.__name__ for x in subclasses(KeyMemory)} - made == ELSEWHERE
    assert {x.__name__ for x in subclasses(TokenStore)} - {"Summaries"} == {
        type(x()).__name__ for x in STORES.values()
    }


class Lent:
    """Tensors as callers have them: parts of larger ones, which nobody may write to."""

    def __init__(self) -> None:
        self.given: list[tuple[Tensor, Tensor]] = []

    def lend(self, x: Tensor) -> Tensor:
        self.given.append((x, x.clone()))
        return x

    def keys(self, n: int) -> tuple[Tensor, Tensor]:
        both = self.lend(torch.randn(2, 2 * G, n + 12, D))
        return both[:, :G, :n], both[:, G:, :n]

    def untouched(self) -> bool:
        return all(torch.equal(x, was) for x, was in self.given)


def both_of(memory: KeyMemory) -> list[KeyMemory]:
    return [memory.source, memory] if isinstance(memory, Shared) else [memory]


def take(memory: KeyMemory, step: tuple[Any, ...], lent: Lent) -> None:
    if step[0] == "extend":
        k, v = lent.keys(step[1])
        keep = torch.ones(2, step[1], dtype=torch.bool)
        keep[0, : min(step[2], step[1] - 1)] = False
        for one in both_of(memory):
            one.extend(k, v, lent.lend(keep))
        return
    if not memory.seen:
        return
    try:
        for one in both_of(memory):
            if step[0] == "crop":
                one.crop(max(one.seen - step[1], 1))
            elif step[0] == "reorder":
                one.reorder(lent.lend(torch.tensor(step[1])))
            elif step[0] == "forget":
                one.forget(Spans([(max(one.seen - step[1], 0), one.seen)]))
            elif step[0] == "choose":
                m = one.read().k.shape[2]
                slots = torch.arange(min(step[1], m)).expand(2, G, -1).clone()
                one.choose(lent.lend(slots))
            elif step[0] == "settle":
                one.settle()
    except CapabilityError:
        return  # not every memory can choose, or go back once it dropped keys


@pytest.mark.parametrize("name", ALL)
@given(steps=STEPS)
def test_a_memory_writes_to_nothing_that_it_was_given(name: str, steps: list[Any]) -> None:
    memory, lent = ALL[name](), Lent()
    for step in [("extend", 3, 0), *steps]:
        take(memory, step, lent)
        memory.read() if memory.seen else None
        assert lent.untouched(), step


@pytest.mark.parametrize("name", ALL)
@given(steps=STEPS, length=st.integers(0, 6))
def test_a_memory_that_cannot_go_back_stays_as_it_is(
    name: str, steps: list[Any], length: int
) -> None:
    """All parts of it: none is shorter than another."""
    memory, lent = ALL[name](), Lent()
    for step in [("extend", 3, 0), *steps]:
        take(memory, step, lent)
    seen, was = memory.seen, [None if x is None else x.clone() for x in memory.read()]
    length = min(length, seen)
    try:
        memory.crop(length)
    except CapabilityError:
        assert memory.seen == seen
        for x, y in zip(memory.read(), was, strict=True):
            assert (x is None and y is None) or torch.equal(x, y)
    else:
        assert memory.seen == length


@pytest.mark.parametrize("name", STORES)
@given(steps=STEPS)
def test_a_store_writes_to_nothing_that_it_was_given(name: str, steps: list[Any]) -> None:
    store, lent = STORES[name](), Lent()
    for step in [("extend", 3, 0), *steps]:
        if step[0] == "extend":
            store.append(lent.keys(step[1])[0])
        elif step[0] == "crop":
            try:
                store.crop(max(len(store) - step[1], 1))
            except CapabilityError:
                continue  # what landmarks were made of is gone
        elif step[0] == "reorder":
            store.reorder(lent.lend(torch.tensor(step[1])))
        else:
            store.settle()
        store.read() if getattr(store, "pages", 1) else None
        assert lent.untouched(), step


def tensors_of(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    inner = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else []
    return [t for y in inner for t in tensors_of(y)]


STATELESS = {"full", "shared", "a memory a head"}


@pytest.mark.parametrize("name", sorted(set(ALL) - STATELESS))
@given(before=STEPS, after=STEPS)
def test_a_state_is_of_its_moment_and_serves_many(
    name: str, before: list[Any], after: list[Any]
) -> None:
    """Neither the memory it is of nor one that took it writes to a state."""
    memory, lent = ALL[name](), Lent()
    for step in [("extend", 3, 0), *before]:
        take(memory, step, lent)
    state = memory.state()
    was = copy.deepcopy(state)
    others = [ALL[name](), ALL[name]()]
    for other in others:
        other.restore(state)
    read = [x.clone() for x in others[1].read() if x is not None]
    for one in (memory, others[0]):
        for step in after:
            take(one, step, lent)
    for x, y in zip(tensors_of(state), tensors_of(was), strict=True):
        assert torch.equal(x, y)
    found = [x for x in others[1].read() if x is not None]
    assert all(torch.equal(x, y) for x, y in zip(found, read, strict=True))


@pytest.mark.parametrize(
    "name", [n for n in ALL if n not in ("paged", "pages of heads", "reserved")]
)
@given(before=STEPS, after=STEPS)
def test_a_copy_is_apart(name: str, before: list[Any], after: list[Any]) -> None:
    memory, lent = ALL[name](), Lent()
    for step in [("extend", 3, 0), *before]:
        take(memory, step, lent)
    other = copy.deepcopy(memory)
    read = [x.clone() for x in other.read() if x is not None]
    for step in after:
        take(memory, step, lent)
    found = [x for x in other.read() if x is not None]
    assert all(torch.equal(x, y) for x, y in zip(found, read, strict=True))
