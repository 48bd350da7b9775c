"""Reserve addresses for the longest text, and map memory as tokens arrive."""

from __future__ import annotations

import mmap
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ShapeError, ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.keys import Dense
from regard.core.method import method
from regard.core.spans import Spans
from regard.core.support.bands import need_count
from regard.memories.base import KeyMemory, extended_positions, need_keys
from regard.memories.kept import need_crop
from regard.memories.paged import PoolError

# Python names this flag from 3.13 on only.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@method("vattention")
class Reservation:
    """Keys and values of `slots` texts of up to `longest` tokens, at contiguous addresses.

    Every layer has two tensors [slots, longest, heads, size] that take no memory. Before tokens are
    written, `need` maps the groups of `group` bytes that contain them; attention reads
    `tensor[slot, :length]`. A closed slot keeps its groups for the next text; `reclaim` returns
    them to the system, as happens when `limit` bytes are mapped. `ahead` maps in the background.
    Host memory only. (vAttention, Prabhu et al. 2024)

    >>> rooms = Reservation(slots=64, longest=1 << 17, layers=2, heads=8, size=128)
    >>> rooms.reserved >> 30, rooms.nbytes
    (128, 0)
    >>> memory = Reserved(rooms, layer=0, slots=[rooms.open()])
    >>> memory.extend(torch.ones(1, 8, 100, 128), torch.ones(1, 8, 100, 128))
    >>> memory.read().k.shape, rooms.nbytes
    (torch.Size([1, 8, 100, 128]), 917504)
    """

    def __init__(
        self, slots: int, longest: int, layers: int, heads: int, size: int, *,
        dtype: torch.dtype = torch.float32, group: int = 1 << 16, limit: int | None = None,
    ) -> None:  # fmt: skip
        sizes = {"slots": slots, "longest": longest, "layers": layers, "heads": heads, "size": size}
        for name, x in sizes.items():
            need_count(name, x)
        if group < mmap.PAGESIZE or group % mmap.PAGESIZE:
            fail(
                ValueRangeError, "group", group, f"a multiple of a page of {mmap.PAGESIZE}",
                "pass group=1 << 16",
            )  # fmt: skip
        self.slots, self.longest, self.layers, self.group = slots, longest, layers, group
        self.limit = limit
        self.token = heads * size * dtype.itemsize
        self._slot = -(-longest * self.token // group) * group  # bytes of one slot of one tensor
        self.reserved = 2 * layers * slots * self._slot
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        try:
            self._map = mmap.mmap(-1, self.reserved, flags=flags)
        except (OSError, OverflowError, ValueError) as error:
            fail(
                PoolError, "longest", f"{self.reserved:,} bytes of addresses ({error})",
                "addresses that the system gives", "reserve fewer slots, or shorter ones",
            )  # fmt: skip
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._map.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would map more than a group
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        item = dtype.itemsize
        self._tensors = self._bytes.view(dtype).as_strided(
            (2 * layers, slots, longest, heads, size),
            (slots * self._slot // item, self._slot // item, heads * size, size, 1),
        )
        # Groups mapped of each tensor of a slot, [slots, 2 layers].
        self._groups = [[0] * (2 * layers) for _ in range(slots)]
        self._busy: set[int] = set()
        self._lock = threading.RLock()
        self._worker: ThreadPoolExecutor | None = None
        # How many groups have been mapped so far.
        self.maps = 0

    def open(self) -> int:
        """Return a free slot, preferably one with mapped memory."""
        with self._lock:
            free = [s for s in range(self.slots) if s not in self._busy]
            if not free:
                fail(
                    PoolError, "slots", f"{self.slots}, all in use", "a free slot",
                    "close one, or reserve more",
                )  # fmt: skip
            slot = max(free, key=lambda s: (sum(self._groups[s]), -s))
            self._busy.add(slot)
            return slot

    def close(self, slot: int) -> None:
        """Free a slot; its memory stays mapped for the next text."""
        with self._lock:
            self._busy.discard(slot)

    def need(self, slot: int, length: int, layer: int | None = None) -> None:
        """Map memory for `length` tokens of a slot, in one layer or in all."""
        if length > self.longest:
            fail(
                ValueRangeError, "length", length, f"at most {self.longest}, as reserved",
                "reserve longer slots: addresses cost nothing",
            )  # fmt: skip
        groups = -(-length * self.token // self.group)
        which = range(2 * self.layers) if layer is None else (2 * layer, 2 * layer + 1)
        with self._lock:
            held = self._groups[slot]
            missing = sum(max(groups - held[t], 0) for t in which)
            self._fit(missing * self.group)
            for t in which:
                if groups > held[t]:
                    start = (t * self.slots + slot) * self._slot
                    first, last = start + held[t] * self.group, start + groups * self.group
                    self._bytes[first : last : mmap.PAGESIZE] = 0  # touching a page maps it
                    held[t] = groups
            self.maps += missing

    def ahead(self, slot: int, length: int) -> Future[None]:
        """Map in the background."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "regard-maps")
        return self._worker.submit(self.need, slot, length)

    def _fit(self, more: int) -> None:
        if self.limit is None or self.nbytes + more <= self.limit:
            return
        self.reclaim(self.nbytes + more - self.limit)
        if self.nbytes + more > self.limit:
            fail(
                PoolError, "limit", f"{self.nbytes + more:,} bytes in use", f"{self.limit:,}",
                "close a slot, or raise the limit",
            )  # fmt: skip

    def reclaim(self, wanted: int | None = None) -> int:
        """Return memory of closed slots to the system, all or `wanted` bytes; return the bytes."""
        given = 0
        with self._lock:
            for slot in range(self.slots):
                if slot in self._busy or (wanted is not None and given >= wanted):
                    continue
                for t, groups in enumerate(self._groups[slot]):
                    if groups:
                        start = (t * self.slots + slot) * self._slot
                        self._map.madvise(mmap.MADV_DONTNEED, start, groups * self.group)
                        given += groups * self.group
                self._groups[slot] = [0] * (2 * self.layers)
        return given

    def tensors(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, [slots, longest, heads, size] each."""
        return self._tensors[2 * layer], self._tensors[2 * layer + 1]

    @property
    def nbytes(self) -> int:
        """Bytes of the groups that are mapped."""
        return sum(map(sum, self._groups)) * self.group

    def bytes_of(self, slot: int, layer: int) -> int:
        """Return bytes mapped for one slot of one layer."""
        return sum(self._groups[slot][2 * layer : 2 * layer + 2]) * self.group

    def __deepcopy__(self, memo: dict[int, Any]) -> Reservation:
        return self  # addresses are not copied


class Reserved(KeyMemory):
    """One layer's keys in slots of a reservation, one for each row.

    Contiguous slots are read as a view.
    """

    def __init__(self, rooms: Reservation, layer: int, slots: Sequence[int]) -> None:
        self.rooms, self.layer, self.slots = rooms, layer, list(slots)
        self.seen = 0
        self._at: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Map memory, and write n tokens."""
        need_keys(k, v, keep)
        n = k.shape[2]
        own = self.rooms.tensors(self.layer)
        want = [len(self.slots), own[0].shape[2], own[0].shape[3]]
        for name, x in (("k", k), ("v", v)):
            if [x.shape[0], x.shape[1], x.shape[3]] != want or x.dtype != own[0].dtype:
                fail(
                    ShapeError, name, f"{list(x.shape)} of {x.dtype}",
                    f"{want[0]} rows, {want[1]} heads of {want[2]}, of {own[0].dtype}",
                    "reserve for the keys of the model",
                )  # fmt: skip
        self._at = extended_positions(self._at, self.seen, k, keep)
        for row, slot in enumerate(self.slots):
            self.rooms.need(slot, self.seen + n, self.layer)
            for held, x in zip(own, (k, v), strict=True):
                held[slot, self.seen : self.seen + n] = x[row].detach().transpose(0, 1)
        self.seen += n

    def keys(self) -> Dense:
        """Return a view if slots are contiguous, else a copy."""
        if not self.seen:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        k, v = (self._rows(x)[:, : self.seen].transpose(1, 2)
                for x in self.rooms.tensors(self.layer))  # fmt: skip
        return Dense(k, v, self._at)

    def _rows(self, x: Tensor) -> Tensor:
        first, b = self.slots[0], len(self.slots)
        if self.slots == list(range(first, first + b)):
            return x[first : first + b]
        return x[:, : self.seen][self.slots]

    def forget(self, horizon: Spans) -> None:
        """Keep all keys."""

    def crop(self, length: int) -> None:
        """Crop; memory stays mapped."""
        need_crop(length, self.seen, 0)
        self._at = None if self._at is None else self._at[:, :length]
        self.seen = length

    def reorder(self, rows: Tensor) -> None:
        """Copy rows, as many as there are slots."""
        if len(rows) != len(self.slots):
            fail(
                CapabilityError, "rows", f"{len(rows)} of {len(self.slots)}", "as many as slots",
                "open one slot for each beam",
            )  # fmt: skip
        if not self.seen:
            return
        for x in self.rooms.tensors(self.layer):
            held = take_batch(self._rows(x)[:, : self.seen], rows)
            for row, slot in enumerate(self.slots):
                x[slot, : self.seen] = held[row]
        self._at = None if self._at is None else take_batch(self._at, rows)

    @property
    def nbytes(self) -> int:
        """Bytes mapped for this layer's slots."""
        at = 0 if self._at is None else self._at.untyped_storage().nbytes()
        return at + sum(self.rooms.bytes_of(slot, self.layer) for slot in self.slots)

    def state(self) -> dict[str, Any]:
        """Return the tokens."""
        read = self.read() if self.seen else None
        return {
            "seen": self.seen, "at": self._at,
            "k": None if read is None else read.k.contiguous(),
            "v": None if read is None else read.v.contiguous(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file, into our slots."""
        self.seen, self._at = 0, None
        if state["k"] is not None:
            self.extend(state["k"], state["v"])
        self._at = state["at"]
