"""Keys of many conversations in tiers: on the device, on the host, on disk, or recomputed.

The chunks with the least recompute cost for their idle time are dropped first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail
from regard.core.support.bands import need_count
from regard.memories.mapped import Mapped
from regard.memories.stores import Hosted, Plain, TokenStore

TIERS = ("device", "host", "disk")
# The value of keeping a chunk, from its recompute cost and idle seconds.
Worth = Callable[[float, float], float]


def per_idle_time(cost: float, idle: float) -> float:
    """Return the value of a chunk in Pensieve: `V = cost / idle`."""
    return cost / max(idle, 1e-9)


def least_recent(cost: float, idle: float) -> float:
    """Return the value of a chunk under LRU, whatever its cost."""
    return 1 / max(idle, 1e-9)


@dataclass(frozen=True)
class RecomputeCost:
    """The cost of recomputing a chunk by the number of tokens before it, linear between points.

    >>> RecomputeCost([(0, 1.0), (100, 3.0)])(50), RecomputeCost([(0, 1.0), (100, 3.0)])(200)
    (2.0, 5.0)
    """

    points: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        rising: list[Any] = list(zip(*self.points, strict=True))
        if len(self.points) < 2 or any(list(x) != sorted(x) for x in rising):
            fail(
                ValueRangeError, "points", list(self.points)[:4], "two or more, increasing in both",
                "pass [(tokens before, cost), ...] with rising costs",
            )  # fmt: skip

    def __call__(self, before: float) -> float:
        """Return the cost of a chunk with `before` tokens before it."""
        at = min(max(bisect_right([x for x, _ in self.points], before), 1), len(self.points) - 1)
        (x0, y0), (x1, y1) = self.points[at - 1], self.points[at]
        return y0 + (y1 - y0) * (before - x0) / max(x1 - x0, 1e-9)


@dataclass(eq=False)
class _Chunk:
    """Keys [layers, g, m, d] and values of consecutive tokens; `held` has a pair by tier."""

    owner: str
    start: int
    held: dict[str, tuple[TokenStore, TokenStore]]

    @property
    def tier(self) -> str:
        """The fastest tier that holds it."""
        return next(t for t in TIERS if t in self.held)

    def bytes(self, tier: str) -> int:
        return sum(x.nbytes + x.file_bytes for x in self.held.get(tier, ()))

    def read(self) -> tuple[Tensor, Tensor]:
        k, v = self.held[self.tier]
        return k.read(), v.read()


class Tiers:
    """Chunks of `size` tokens by conversation, each in the fastest tier that it is worth.

    `device`, `host` and `disk` are bytes (None for no limit, 0 for no such tier). A full tier moves
    its least valuable chunks down; the last tier drops them. The value of a chunk is
    `worth(cost(tokens before it), seconds idle)`, with rising costs, so the first chunks of idle
    conversations go first, and what is left of one is always its end. Once less than `ahead` of the
    device is free, chunks are copied to the host in advance.
    (Pensieve, Yu et al. 2023)

    >>> tiers = Tiers(device=2 * 32 * 4 * 2, host=0, disk=0, size=32)
    >>> tiers.put("a", torch.ones(1, 1, 96, 1), torch.ones(1, 1, 96, 1), now=0.0)
    >>> tiers.where("a"), tiers.take("a")[0]
    ({'dropped': 32, 'device': 64}, 32)
    """

    def __init__(
        self, device: int | None = None, host: int | None = None, disk: int | None = 0, *,
        size: int = 32, cost: Callable[[float], float] | None = None,
        worth: Worth = per_idle_time, ahead: float = 0.25, folder: str | Path | None = None,
    ) -> None:  # fmt: skip
        need_count("size", size)
        self.limits = dict(zip(TIERS, (device, host, disk), strict=True))
        for name, limit in self.limits.items():
            if limit is not None and (not isinstance(limit, int) or limit < 0):
                fail(ValueRangeError, name, limit, "bytes, 0 or more", "None for no bound")
        if not 0 <= ahead <= 1:
            fail(ValueRangeError, "ahead", ahead, "a share from 0 to 1", "0.25 is usual")
        self.size, self.worth, self.ahead, self.folder = size, worth, ahead, folder
        # By default the cost rises with the number of tokens before a chunk.
        self.cost = (lambda before: 1.0 + before) if cost is None else cost
        self._chunks: dict[str, list[_Chunk]] = {}
        self._length: dict[str, int] = {}
        self._active: dict[str, float] = {}

    def _made(self, tier: str) -> TokenStore:
        return Plain() if tier == "device" else Hosted() if tier == "host" else Mapped(self.folder)

    def __contains__(self, name: str) -> bool:
        return name in self._length

    def put(self, name: str, k: Tensor, v: Tensor, *, now: float, start: int = 0) -> None:
        """Store the keys k [layers, g, m, d] and values of tokens from `start` on; others may move.

        A conversation is stored as a whole; `take` it before storing it again.
        """
        if name in self:
            fail(RuleError, "name", repr(name), "a name that is not stored", "take it first")
        if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3]:
            fail(ShapeError, "v", list(v.shape), f"{list(k.shape[:3])} and its size", "match k")
        made, first = [], start
        while first < start + k.shape[2]:
            last = min((first // self.size + 1) * self.size, start + k.shape[2])
            pair = (Plain(), Plain())
            for store, x in zip(pair, (k, v), strict=True):
                store.append(x[:, :, first - start : last - start].clone())
            made.append(_Chunk(name, first, {"device": pair}))
            first = last
        self._chunks[name], self._length[name] = made, start + k.shape[2]
        self._active[name] = now
        self.settle(now)

    def take(self, name: str) -> tuple[int, Tensor | None, Tensor | None]:
        """Remove a conversation: return how many of its first tokens were dropped, and the rest."""
        if name not in self:
            fail(RuleError, "name", repr(name), "a stored conversation", "put it first")
        chunks, length = self._chunks.pop(name), self._length.pop(name)
        del self._active[name]
        if not chunks:
            return length, None, None
        k, v = (torch.cat(x, 2) for x in zip(*(c.read() for c in chunks), strict=True))
        return chunks[0].start, k, v

    def drop(self, name: str) -> None:
        """Drop a conversation."""
        for held in (self._chunks, self._length, self._active):
            held.pop(name, None)

    def where(self, name: str) -> dict[str, int]:
        """Count the tokens of a conversation by tier."""
        chunks = self._chunks[name]
        first = chunks[0].start if chunks else self._length[name]
        found = {"dropped": first} if first else {}
        for chunk in chunks[::-1]:
            found[chunk.tier] = found.get(chunk.tier, 0) + len(chunk.held[chunk.tier][0])
        return found

    def used(self, tier: str) -> int:
        """Return bytes of a tier."""
        return sum(c.bytes(tier) for chunks in self._chunks.values() for c in chunks)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, on the device and on the host."""
        return self.used("device") + self.used("host")

    @property
    def file_bytes(self) -> int:
        """Bytes of files."""
        return self.used("disk")

    def settle(self, now: float) -> None:
        """Move down what tiers have no room for, and copy in advance what will move next."""
        for tier in TIERS:
            limit, used = self.limits[tier], self.used(tier)
            while limit is not None and used > limit:
                chunk = self._least(tier, now)
                used -= chunk.bytes(tier)
                self._push(chunk, tier)
        self._copy_ahead(now)

    def _least(self, tier: str, now: float) -> _Chunk:
        """Return the least valuable chunk of a tier; of ties the first of its conversation."""

        def worth(chunk: _Chunk) -> tuple[float, int]:
            idle = now - self._active[chunk.owner]
            return self.worth(self.cost(chunk.start), idle), chunk.start

        # Of one conversation it is the first one there, since cost rises with the tokens before.
        found = (next((c for c in x if tier in c.held), None) for x in self._chunks.values())
        return min((c for c in found if c is not None), key=worth)

    def _push(self, chunk: _Chunk, tier: str) -> None:
        lower = [t for t in TIERS[TIERS.index(tier) + 1 :] if self.limits[t] != 0]
        if lower and not set(lower) & set(chunk.held):
            self._copy(chunk, lower[0])
        del chunk.held[tier]
        if not chunk.held:
            first = self._chunks[chunk.owner].pop(0)
            assert first is chunk, "what is left of a conversation is its end"

    def _copy(self, chunk: _Chunk, tier: str) -> None:
        pair = (self._made(tier), self._made(tier))
        for store, x in zip(pair, chunk.read(), strict=True):
            store.append(x)
        chunk.held[tier] = pair

    def _copy_ahead(self, now: float) -> None:
        limit, room = self.limits["device"], self.limits["host"]
        if limit is None or room == 0:
            return
        held = [c for chunks in self._chunks.values() for c in chunks if "device" in c.held]
        held.sort(key=lambda c: (self.worth(self.cost(c.start), now - self._active[c.owner]),
                                 c.start))  # fmt: skip
        free = limit - self.used("device")
        for chunk in held:
            if free >= self.ahead * limit:
                return
            if "host" not in chunk.held:
                if room is not None and self.used("host") + chunk.bytes("device") > room:
                    return
                self._copy(chunk, "host")
            free += chunk.bytes("device")

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        content: dict[str, Any] = {}
        for name, chunks in self._chunks.items():
            pairs = list(zip(*(c.read() for c in chunks), strict=True))
            k, v = (torch.cat(x, 2) for x in pairs) if pairs else (None, None)
            content[name] = {"k": k, "v": v, "length": self._length[name]}
        return {"size": self.size, "conversations": content}

    def restore(self, state: dict[str, Any], now: float = 0.0) -> None:
        """Load a state from a file; all conversations were last active at `now`."""
        for name, held in state["conversations"].items():
            self.drop(name)
            if held["k"] is not None:
                start = held["length"] - held["k"].shape[2]
                self.put(name, held["k"], held["v"], now=now, start=start)
            else:
                self._chunks[name], self._length[name], self._active[name] = [], held["length"], now
