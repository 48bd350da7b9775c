"""Every memory of keys against a list that keeps everything."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from regard.core.errors import CapabilityError, RegardError
from regard.memories import (
    Full,
    HeadPages,
    Hosted,
    Kept,
    KeyMemory,
    LowRank,
    Mapped,
    Paged,
    Plain,
    Pool,
    Quantized,
    Ring,
    Shared,
    load,
    save,
)  # fmt: skip

G, D = 2, 8
EXACT = 1e-6


def shared() -> KeyMemory:
    """A pair: the source is extended by the test as well."""
    return Shared(Kept())


# How each is made, and how far its keys and values may be from those that came.
MAKERS: dict[str, tuple[Callable[[], KeyMemory], float]] = {
    "full": (Full, EXACT),
    "kept": (Kept, EXACT),
    "ring": (lambda: Ring(window=7, sinks=2), EXACT),
    "int8": (lambda: Kept(lambda: Quantized(8, "channel", 4, 2), lambda: Quantized(8, "token", 4, 2)), 0.03),  # noqa: E501
    "int4": (lambda: Kept(lambda: Quantized(4, "channel", 4, 2), lambda: Quantized(4, "token", 4, 2)), 0.4),  # noqa: E501
    "int2": (lambda: Kept(lambda: Quantized(2, "channel", 4, 2), lambda: Quantized(2, "token", 4, 2)), 1.8),  # noqa: E501
    "low rank, whole": (lambda: Kept(lambda: LowRank(D - 1, 0), lambda: LowRank(D, 0)), 6.0),
    "hosted": (lambda: Kept(Hosted), EXACT),
    "mapped": (lambda: Kept(Mapped), EXACT),
    "paged": (lambda: Paged(Pool(size=4)), EXACT),
    "pages of heads": (lambda: HeadPages(size=4), EXACT),
    "shared": (shared, EXACT),
}  # fmt: skip
every = pytest.mark.parametrize("name", MAKERS)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.integers(1, 6), st.integers(0, 3)),
        st.tuples(st.just("extend"), st.just(1), st.just(0)),
        st.tuples(st.just("crop"), st.integers(0, 5)),
        st.tuples(st.just("reorder"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        st.tuples(st.just("settle")),
        st.tuples(st.just("save")),
    ),
    min_size=1,
    max_size=12,
)


class Listed:
    """The model: for each row a list of (position, key, value)."""

    def __init__(self, batch: int) -> None:
        self.rows: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in range(batch)]
        self.seen = 0

    def extend(self, k: Tensor, v: Tensor, keep: Tensor) -> None:
        for row, held in enumerate(self.rows):
            held += [
                (self.seen + t, k[row, :, t], v[row, :, t])
                for t in range(k.shape[2]) if keep[row, t]
            ]  # fmt: skip
        self.seen += k.shape[2]

    def crop(self, length: int) -> None:
        self.rows = [[x for x in row if x[0] < length] for row in self.rows]
        self.seen = length

    def reorder(self, rows: list[int]) -> None:
        self.rows = [list(self.rows[r]) for r in rows]


def held_of(memory: KeyMemory, row: int, head: int) -> dict[int, tuple[Tensor, Tensor]]:
    read = memory.read()
    at = torch.arange(read.k.shape[2]) if read.positions is None else read.positions
    at = at if at.dim() == 1 else at[min(row, len(at) - 1)]
    at = at if at.dim() == 1 else at[head]
    assert bool((at[at >= 0].diff() > 0).all()), "positions increase"
    return {
        int(p): (read.k[row, head, j], read.v[row, head, j]) for j, p in enumerate(at) if p >= 0
    }


def must_hold(memory: KeyMemory, position: int, rank: int) -> bool:
    """Whether a memory may not have dropped the key at a position, of so many before in its row."""
    if isinstance(memory, Ring):
        return position >= memory.seen - memory.window or rank < memory.sinks
    return True


def same(memory: KeyMemory, model: Listed, within: float) -> None:
    assert memory.seen == model.seen
    if model.seen == 0:
        return
    for row, tokens in enumerate(model.rows):
        for head in range(G):
            held = held_of(memory, row, head)
            assert set(held) <= {p for p, _, _ in tokens}
            for rank, (p, k, v) in enumerate(tokens):
                if p not in held:
                    assert not must_hold(memory, p, rank), (p, rank)
                    continue
                assert float((held[p][0] - k[head]).abs().max()) <= within
                assert float((held[p][1] - v[head]).abs().max()) <= within


def drive(name: str, steps: list[tuple[Any, ...]], seed: int, tmp_path: Any) -> None:
    torch.manual_seed(seed)
    make, within = MAKERS[name]
    memory, model = make(), Listed(2)
    for step in steps:
        if step[0] == "extend":
            k, v = torch.randn(2, G, step[1], D), torch.randn(2, G, step[1], D)
            keep = torch.ones(2, step[1], dtype=torch.bool)
            keep[0, : min(step[2], step[1] - 1)] = False
            if isinstance(memory, Shared):
                memory.source.extend(k, v, keep)
            memory.extend(k, v, keep)
            model.extend(k, v, keep)
        elif step[0] == "crop":
            length = max(model.seen - step[1], 0)
            try:
                if isinstance(memory, Shared):
                    memory.source.crop(length)
                memory.crop(length)
            except CapabilityError:
                assert isinstance(memory, Ring), "only what drops keys may refuse to go back"
                continue
            model.crop(length)
        elif step[0] == "reorder" and model.seen:
            if isinstance(memory, Shared):
                memory.source.reorder(torch.tensor(step[1]))
            memory.reorder(torch.tensor(step[1]))
            model.reorder(step[1])
        elif step[0] == "settle":
            memory.settle()
            if isinstance(memory, Shared):
                memory.source.settle()
        elif step[0] == "save" and not isinstance(memory, Full | Shared):
            path = save(memory, tmp_path / "memory", overwrite=True)
            memory = load(make(), path)
        same(memory, model, within)


# After the reordering a column is padding in every row, and the crop goes back before it.
PADDED = [("extend", 2, 0), ("extend", 2, 1), ("reorder", [0, 0]), ("crop", 3)]


@every
@given(steps=STEPS, seed=st.integers(0, 1000))
@example(steps=PADDED, seed=0)
def test_a_memory_holds_what_a_list_holds(
    name: str, steps: list[tuple[Any, ...]], seed: int, tmp_path_factory: Any
) -> None:
    drive(name, steps, seed, tmp_path_factory.getbasetemp())


@every
def test_repeating_gives_each_row_its_followers(name: str) -> None:
    make, within = MAKERS[name]
    memory, model = make(), Listed(2)
    k, v = torch.randn(2, G, 5, D), torch.randn(2, G, 5, D)
    keep = torch.ones(2, 5, dtype=torch.bool)
    for one in (memory.source, memory) if isinstance(memory, Shared) else (memory,):
        one.extend(k, v, keep)
        one.repeat(3, 2)
    model.extend(k, v, keep)
    model.reorder([0, 0, 0, 1, 1, 1])
    same(memory, model, within)


def tensors_in(x: Any, found: dict[int, int]) -> dict[int, int]:
    """Bytes of every storage that an object reaches, whatever it says itself."""
    if isinstance(x, Tensor):
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    elif isinstance(x, dict):
        for y in x.values():
            tensors_in(y, found)
    elif isinstance(x, list | tuple):
        for y in x:
            tensors_in(y, found)
    elif type(x).__module__.startswith(("regard.memories", "regard.policies", "tests.")):
        tensors_in(vars(x), found)
    return found


@pytest.mark.parametrize("name", [n for n in MAKERS if n not in ("mapped", "paged", "shared")])
@given(pieces=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_bytes_are_those_of_every_tensor_held(name: str, pieces: list[int]) -> None:
    memory = MAKERS[name][0]()
    for n in pieces:
        memory.extend(torch.randn(2, G, n, D), torch.randn(2, G, n, D))
        memory.settle()
        reached = {p: n for p, n in tensors_in(vars(memory), {}).items() if p}
        assert memory.nbytes == sum(reached.values())


@given(pieces=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_bytes_of_pages_are_those_of_the_pool(pieces: list[int]) -> None:
    """The room that a pool has to spare is held as well; two memories share it."""
    one = Paged()
    two = Paged(one.pool)
    for n in pieces:
        one.extend(torch.randn(2, G, n, D), torch.randn(2, G, n, D))
        held = sum(tensors_in(vars(one), {}).values())
        assert one.nbytes - 4 * sum(map(len, one.tables or ())) == held
    two.extend(torch.randn(1, G, 20, D), torch.randn(1, G, 20, D))
    held = sum(tensors_in(vars(one), {}).values())
    tables = sum(len(t) for m in (one, two) for t in m.tables or ())
    assert abs(one.nbytes + two.nbytes - 4 * tables - held) <= 1


def test_pages_are_counted_once_and_come_back() -> None:
    pool = Pool(size=16)
    first = Paged(pool)
    k = torch.randn(1, G, 100, D)
    first.extend(k, k)
    first.repeat(4, 1)
    assert pool.held == 7
    assert first.nbytes == 8 * 2 * 16 * G * D * 4 + 4 * 28  # one page is free
    second = first.fork()
    second.extend(*torch.randn(2, 4, G, 1, D))
    assert torch.equal(first.read().k, k.expand(4, -1, -1, -1))
    first.free(), second.free()
    assert pool.held == 0
    assert sorted(pool.free) == list(range(len(pool.counts)))


@given(
    counts=st.lists(st.integers(1, 60), min_size=3, max_size=3), more=st.integers(0, 5),
    bits=st.sampled_from([None, 8]),
)  # fmt: skip
def test_heads_keep_their_own(counts: list[int], more: int, bits: int | None) -> None:
    kind = Plain if bits is None else (lambda: Quantized(8, "token", 4, 2))
    memory = Kept(kind)
    k, v = torch.randn(1, 3, 60, D), torch.randn(1, 3, 60, D)
    memory.extend(k, v)
    memory.set_note("weight", k[..., 0])
    slots = torch.full((1, 3, 60), -1)
    wanted = [torch.randperm(60)[:c].sort().values for c in counts]
    for head, own in enumerate(wanted):
        slots[0, head, : len(own)] = own
    memory.choose(slots)
    memory.settle()
    read = memory.read()
    assert memory.counts.tolist() == [counts]
    for head, own in enumerate(wanted):
        real = read.positions[0, head] >= 0
        assert read.positions[0, head][real].tolist() == own.tolist()
        torch.testing.assert_close(read.k[0, head][real], k[0, head, own], atol=0.03, rtol=0)
        assert torch.equal(memory.note("weight")[0, head][real], k[0, head, own, 0])
    if bits is None:
        held = sum(counts) * D * 2 * 4
        note = 4 * sum(counts)
        assert memory.nbytes - note <= 1.05 * held + 4 * sum(counts)
    x = torch.randn(1, 3, more, D)
    if more:
        memory.extend(x, x)
        assert memory.counts.tolist() == [[c + more for c in counts]]
    with pytest.raises(CapabilityError, match="dropped"):
        memory.crop(59)


def test_ragged_heads_cost_their_keys_and_little_more() -> None:
    """Positions and room to grow included: within 5%, at the size of head that models have."""
    memory = Kept()
    x = torch.randn(1, 4, 2000, 64)
    memory.extend(x, x)
    slots = torch.full((1, 4, 2000), -1)
    counts = [2000, 700, 300, 100]
    for head, c in enumerate(counts):
        slots[0, head, :c] = torch.arange(2000 - c, 2000)
    memory.choose(slots)
    for _ in range(20):
        memory.extend(x[:, :, :1], x[:, :, :1])
        memory.settle()
    keys = sum(c + 20 for c in counts) * 64 * 2 * 4
    assert keys <= memory.nbytes <= 1.05 * keys


def test_a_ring_costs_the_same_at_every_length() -> None:
    memory = Ring(window=16, sinks=4)
    sizes = []
    for _ in range(100):
        x = torch.randn(1, 2, 1, 8)
        memory.extend(x, x)
        memory.settle()
        sizes.append(memory.nbytes)
    assert len(set(sizes[30:])) == 1
    assert memory.read().k.shape[2] == 20


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("pads", [(0, 17), (3, 9), (12, 13), (1, 25)])
def test_sinks_are_the_first_real_tokens_however_late_they_come(
    pads: tuple[int, int], piece: int
) -> None:
    """A row may begin with whole pieces of padding: its sinks come with later ones."""
    memory, n, sinks, window = Ring(window=6, sinks=3), 40, 3, 6
    x = torch.arange(float(n)).view(1, 1, n, 1).expand(2, 1, n, 2).contiguous()
    keep = torch.arange(n) >= torch.tensor(pads)[:, None]
    for start in range(0, n, piece):
        part = slice(start, start + piece)
        memory.extend(x[:, :, part], x[:, :, part], keep[:, part])
        memory.settle()
    read = memory.read()
    assert read.positions is not None
    for row, pad in enumerate(pads):
        want = [*range(pad, min(pad + sinks, n - window)), *range(max(pad, n - window), n)]
        held = read.positions[row] >= 0
        assert read.positions[row][held].tolist() == want
        assert read.k[row, 0, held, 0].tolist() == want


def test_copies_are_apart() -> None:
    memory = Kept()
    x = torch.randn(1, 2, 6, 4)
    memory.extend(x, x)
    other = copy.deepcopy(memory)
    memory.extend(x, x)
    assert (other.seen, memory.seen) == (6, 12)


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "kind", "gone"])
def test_a_broken_file_is_told(tmp_path: Any, damage: str) -> None:
    memory = Kept()
    x = torch.randn(1, 2, 6, 4)
    memory.extend(x, x)
    path = save(memory, tmp_path / "keys")
    body = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(body[: len(body) // 2])
    elif damage == "changed":
        body[-20] ^= 1
        path.write_bytes(body)
    elif damage == "other":
        path.write_bytes(b"hello")
    elif damage == "gone":
        path.unlink()
    with pytest.raises(RegardError, match="keys"):
        load(Ring(4) if damage == "kind" else Kept(), path)


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    memory = Kept(lambda: Mapped(tmp_path))
    x = torch.randn(1, 2, 6, 4)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RegardError, match=r"(?i)no space left"):
        memory.extend(x, x)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RegardError, match=r"(?i)no space left"):
        save(Kept(), tmp_path / "keys")
    assert not list(tmp_path.glob(".keys*"))


def test_a_mapped_file_goes_with_its_memory(tmp_path: Any) -> None:
    memory = Kept(lambda: Mapped(tmp_path))
    x = torch.randn(2, 2, 6, 4)
    memory.extend(x, x)
    memory.reorder(torch.tensor([1, 0]))
    assert torch.equal(memory.read().k, x.flip(0))
    assert len(list(tmp_path.glob("*/*.keys"))) == 2
    assert memory.file_bytes >= 2 * x.nbytes
    del memory
    assert not list(tmp_path.iterdir())
