"""Memories whose blocks may be on any worker, with a ledger of loans, as in DistAttention.

A request keeps its newest blocks on its own worker. When that is full its oldest blocks move to a
worker with room, which lends them until the request ends. Attention is computed where the blocks
are: queries go there, outputs with their log-sum-exp come back; keys stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RegardError, ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.keys import Dense, Keys
from regard.core.method import method
from regard.core.partial import Partial, merge, nothing
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, need_keys
from regard.run.executor import LAUNCH, Answer, Cost, Executor, No, Yes
from regard.run.plan import EXECUTORS
from regard.run.runner import partial_of


class NoRoomError(RegardError):
    """No worker has a free block."""


@dataclass(frozen=True, eq=False, repr=False)
class Lent(Keys):
    """Keys in parts, each on a worker: (worker, its keys with positions).

    >>> k = torch.randn(1, 2, 4, 8)
    >>> parts = tuple((w, Dense(k, k, torch.arange(4) + 4 * w)) for w in range(2))
    >>> Lent(parts).dense().positions.tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """

    form: ClassVar[str] = "lent"
    parts: tuple[tuple[int, Dense], ...]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Return the sizes (b, g, m, d, e) of all parts together."""
        b, g, _, d, e = self.parts[0][1].shape
        return b, g, sum(x.m for _, x in self.parts), d, e

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of all parts."""
        return tuple(x for _, keys in self.parts for x in keys.tensors())

    @property
    def positions(self) -> Tensor:
        """Return the positions of the keys, in ascending order."""
        at = torch.cat([x.positions for _, x in self.parts if x.positions is not None])
        return at.sort().values

    @property
    def full(self) -> bool:
        """Return True: every slot holds a key."""
        return True

    def dense(self) -> Dense:
        """Concatenate all parts in order."""
        at = torch.cat([x.positions for _, x in self.parts if x.positions is not None])
        order = at.argsort()
        k, v = (torch.cat([getattr(x, n) for _, x in self.parts], 2)[:, :, order] for n in "kv")
        return Dense(k, v, at[order])


class Workers:
    """Workers with room for `capacity` blocks (one number, or one per worker) of `block` tokens.

    >>> workers = Workers(capacity=2, workers=3, block=4)
    >>> memory = workers.request(owner=0)
    >>> memory.extend(torch.randn(1, 2, 18, 8), torch.randn(1, 2, 18, 8))
    >>> workers.held, workers.owed
    ([2, 2, 1], {(0, 1): 2, (0, 2): 1})
    >>> memory.free()
    >>> workers.held, workers.owed
    ([0, 0, 0], {})
    """

    def __init__(self, capacity: int | Sequence[int], workers: int = 2, block: int = 16) -> None:
        rooms = [capacity] * workers if isinstance(capacity, int) else list(capacity)
        if not rooms or min(rooms) < 0 or block < 1:
            fail(
                ValueRangeError, "capacity", rooms, "blocks of at least a token on some workers",
                "pass capacity=64, workers=4, block=16",
            )  # fmt: skip
        self.rooms, self.block = rooms, block
        self.held = [0] * len(rooms)
        self._debts: Counter[tuple[int, int]] = Counter()
        # Bytes of keys and values that moved to another worker.
        self.moved = 0

    @property
    def owed(self) -> dict[tuple[int, int], int]:
        """Return the number of blocks that each (debtor, creditor) pair owes."""
        return {pair: n for pair, n in sorted(self._debts.items()) if n}

    def balance(self) -> list[int]:
        """Return blocks lent minus blocks borrowed for each worker; they sum to 0."""
        found = [0] * len(self.rooms)
        for (debtor, creditor), n in self._debts.items():
            found[creditor] += n
            found[debtor] -= n
        return found

    def request(self, owner: int) -> LentMemory:
        """Start a request on a worker."""
        if not 0 <= owner < len(self.rooms):
            fail(ValueRangeError, "owner", owner, f"0 to {len(self.rooms) - 1}", "name a worker")
        return LentMemory(self, owner)

    def creditor(self, owner: int) -> int:
        """Return the nearest worker with the most room; raise if none has any."""
        free = [room - held for room, held in zip(self.rooms, self.held, strict=True)]
        best = max(range(len(free)), key=lambda w: (free[w], -abs(w - owner), -w))
        if free[best] < 1:
            fail(
                NoRoomError, "memory", f"{sum(self.held)} blocks held by all workers",
                "a free block", "free a request, or add workers",
            )  # fmt: skip
        return best

    def take(self, owner: int, worker: int) -> None:
        """Allocate one more block on a worker, for a request of `owner`."""
        self.held[worker] += 1
        if worker != owner:
            self._debts[owner, worker] += 1

    def give_back(self, owner: int, worker: int) -> None:
        """Free a block."""
        self.held[worker] -= 1
        if worker != owner:
            self._debts[owner, worker] -= 1


@method(
    "infinite_llm_dist_attention",
    call="from regard.schemes.lending import Workers\n"
    "request = Workers(capacity=64, workers=4).request(owner=0)",
)
class LentMemory(KeyMemory):
    """The memory of one request: blocks of tokens on its own worker, and older ones elsewhere."""

    def __init__(self, workers: Workers, owner: int) -> None:
        self.workers, self.owner = workers, owner
        self.seen = 0
        # The worker of each block, and its keys and values; all but the last are full.
        self.blocks: list[tuple[int, Tensor, Tensor]] = []

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens to the newest block, then to new ones on the own worker."""
        need_keys(k, v, keep)
        if keep is not None and not bool(keep.all()):
            fail(ValueRangeError, "keep", "padding", "real tokens", "one request for each text")
        size, at = self.workers.block, 0
        while at < k.shape[2]:
            if not self.blocks or self.blocks[-1][1].shape[2] == size:
                self.blocks.append((self._room(), k[:, :, :0], v[:, :, :0]))
            worker, old_k, old_v = self.blocks[-1]
            many = size - old_k.shape[2]
            new = slice(at, at + many)
            self.blocks[-1] = (
                worker, torch.cat((old_k, k[:, :, new]), 2), torch.cat((old_v, v[:, :, new]), 2),
            )  # fmt: skip
            at += many
        self.seen += k.shape[2]

    def _room(self) -> int:
        """Return a worker for a new block: the own one, moving its oldest block away if full."""
        workers = self.workers
        if workers.held[self.owner] < workers.rooms[self.owner]:
            workers.take(self.owner, self.owner)
            return self.owner
        there = workers.creditor(self.owner)
        workers.take(self.owner, there)
        oldest = next((i for i, x in enumerate(self.blocks) if x[0] == self.owner), None)
        if oldest is None:  # other requests fill the own worker: borrow the new block
            return there
        _, k, v = self.blocks[oldest]
        self.blocks[oldest] = (there, k, v)
        workers.moved += k.nbytes + v.nbytes
        return self.owner

    def keys(self) -> Keys:
        """Return the keys of each worker."""
        size = self.workers.block
        found = []
        for worker in dict.fromkeys(w for w, _, _ in self.blocks):
            own = [(i, k, v) for i, (w, k, v) in enumerate(self.blocks) if w == worker]
            at = torch.cat([torch.arange(k.shape[2]) + i * size for i, k, _ in own])
            k, v = torch.cat([x for _, x, _ in own], 2), torch.cat([x for _, _, x in own], 2)
            found.append((worker, Dense(k, v, at.to(k.device))))
        if not found:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        return Lent(tuple(found))

    def forget(self, horizon: Spans) -> None:
        """Keep everything: a lent block stays until the request ends."""

    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens; empty blocks are freed."""
        size = self.workers.block
        while self.blocks and (len(self.blocks) - 1) * size >= length:
            self.workers.give_back(self.owner, self.blocks.pop()[0])
        if self.blocks:
            worker, k, v = self.blocks[-1]
            left = length - (len(self.blocks) - 1) * size
            self.blocks[-1] = (worker, k[:, :, :left], v[:, :, :left])
        self.seen = min(self.seen, length)

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        self.blocks = [(w, take_batch(k, rows), take_batch(v, rows)) for w, k, v in self.blocks]

    def free(self) -> None:
        """End the request: free every block, and clear its loans."""
        self.crop(0)

    @property
    def nbytes(self) -> int:
        """Return the bytes of keys and values on all workers."""
        return sum(k.nbytes + v.nbytes for _, k, v in self.blocks)


class LentExecutor(Executor):
    """Attend on each worker to its keys, and merge the outputs."""

    name = "lent"
    reads: ClassVar[frozenset[str]] = frozenset({Lent.form})

    def can(self, call: Call) -> Answer:
        """Accept any rule that can be sliced by positions."""
        if not isinstance(call.keys, Lent):
            return No(f"reads lent keys, not {call.keys.form}")
        score = call.rule.score
        if call.dropout or score.needs_row or any(x.by_token for x in score.steps):
            return No("drops no weights, and reads neither whole rows nor an entry for each token")
        return Yes(f"{len(call.keys.parts)} parts, of which outputs come back")

    def cost(self, call: Call) -> Cost:
        """Count all pairs, and a message to each part and back."""
        assert isinstance(call.keys, Lent)
        pairs = call.b * call.h * call.n * call.m
        moved = sum(message_bytes(call)) + call.keys.nbytes
        return Cost(2.0 * pairs * (call.d + call.e) + LAUNCH * len(call.keys.parts), moved)

    def run(self, call: Call) -> Partial:
        """Attend to the parts, and merge."""
        lent = call.keys
        assert isinstance(lent, Lent)
        if call.q_positions is None:
            at = torch.arange(call.n, device=call.q.device)
            call = call.replace(q_positions=at)
        parts = [partial_of(call.replace(keys=keys)) for _, keys in lent.parts]
        empty = call.q.new_zeros(call.b, call.h, call.n, call.e)
        return merge(*parts) if parts else nothing(empty, sums=call.rule.weigh.sums)


def message_bytes(call: Call) -> list[int]:
    """Count the bytes of each part's messages: queries there, output and lse back.

    b h n (d + e + 1) numbers, whatever the length of the context.
    """
    keys = call.keys
    assert isinstance(keys, Lent)
    each = call.b * call.h * call.n * (call.d + call.e + 1) * call.q.element_size()
    return [each for _ in keys.parts]


EXECUTORS.add(Lent.form, "lent", "regard.schemes.lending", "LentExecutor")
