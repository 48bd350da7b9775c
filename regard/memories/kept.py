"""Keys of which each head may keep its own: ragged, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.nn.functional import pad

from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.heads import gather_heads, take_batch, take_keys
from regard.core.key_forms import Ragged
from regard.core.keys import Keys, Positions
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, need_keys, need_same_heads, need_slots
from regard.memories.stores import Plain, StoreKind, TokenStore

# Heads whose counts differ by less than this share one tensor.
ALIKE = 1 / 64
# Positions below this are kept in 16 bits.
SHORT = 1 << 15


class _Part:
    """Heads that keep equally many keys, in one tensor."""

    def __init__(
        self, heads: tuple[int, ...], k: TokenStore, v: TokenStore, at: Tensor | None = None
    ) -> None:
        self.heads, self.k, self.v = heads, k, v
        # Positions [b, heads, c] of the first slots, -1 at empty ones, in 16 bits if they fit. The
        # slots after them are the newest tokens, consecutive: a step writes nothing here.
        self.at = at
        self.real = at is None or bool((at >= 0).all())
        # What policies record for each slot, [b, heads, m] each.
        self.notes: dict[str, Tensor] = {}

    def positions(self, b: int, seen: int, device: torch.device) -> Positions:
        """Return positions of all slots, once `seen` tokens have been seen."""
        return Positions(self.at, seen, (b, len(self.heads), len(self.k)), self.real, device)


class Kept(KeyMemory):
    """Every key, until `choose` evicts slots of heads.

    Heads that keep equally many keys share a tensor, so that ragged heads cost what they keep. `k`
    and `v` are the kinds of store: `Plain`, or fewer bits, lower rank, a file.

    >>> memory = Kept()
    >>> memory.extend(torch.randn(1, 2, 100, 4), torch.randn(1, 2, 100, 4))
    >>> slots = torch.full((1, 2, 50), -1)
    >>> slots[0, 0], slots[0, 1, :10] = torch.arange(50, 100), torch.arange(90, 100)
    >>> memory.choose(slots)
    >>> memory.counts.tolist(), memory.nbytes == 60 * (2 * 16 + 2)
    ([[50, 10]], True)
    """

    def __init__(self, k: StoreKind = Plain, v: StoreKind | None = None) -> None:
        self.seen = 0
        self._kinds = (k, k if v is None else v)
        self._parts: list[_Part] = []
        self._shape: tuple[int, int] | None = None
        # Tokens seen when keys were last dropped: the memory cannot be cropped to before that.
        self._dropped_at = 0
        self._device = torch.device("cpu")
        # Shapes of new keys and values that fit, as they came last: steps are checked once.
        self._fits: tuple[Size, Size] | None = None

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens to every head."""
        fits = self._fits
        known = fits is not None and type(k) is Tensor is type(v)
        if keep is not None or not known or fits != (k.shape, v.shape):
            need_keys(k, v, keep)
            need_same_heads(k, self._shape)
            b, g = k.shape[:2]
            if self._shape is None:
                self._shape, self._device = (b, g), k.device
                self._parts = [_Part(tuple(range(g)), self._kinds[0](), self._kinds[1]())]
            self._fits = k.shape, v.shape
        if keep is not None and not bool(keep.all()):
            self._place(keep)
        n, alone = k.shape[2], len(self._parts) == 1
        for part in self._parts:
            part.k.append(k if alone else gather_heads(k, part.heads))
            part.v.append(v if alone else gather_heads(v, part.heads))
            if part.notes:
                part.notes = {x: pad(t, (0, n)) for x, t in part.notes.items()}
        self.seen += n

    def _place(self, keep: Tensor) -> None:
        """Record the positions of tokens about to be appended, some of them padding."""
        b, n = keep.shape
        new = torch.arange(self.seen, self.seen + n, dtype=torch.int32, device=keep.device)
        new = torch.where(keep, new, -1)[:, None]
        for part in self._parts:
            old = part.positions(b, self.seen, keep.device).tensor().int()
            part.at = torch.cat((old, new.expand(b, len(part.heads), n)), 2)
            part.real = False

    def groups(self) -> Iterator[tuple[tuple[int, ...], KeyMemory]]:
        """Yield the heads that keep equally many keys, and their keys; nothing is copied."""
        for part in self._parts:
            own = Kept(*self._kinds)
            own.seen, own._parts, own._device = self.seen, [part], self._device
            own._shape = self._shape and (self._shape[0], len(part.heads))
            yield part.heads, own

    @property
    def ragged(self) -> bool:
        """Whether heads keep different numbers of keys."""
        return len(self._parts) > 1

    def keys(self) -> Keys:
        """Return the keys of all heads: ragged, where heads keep different numbers."""
        parts = self._parts
        if len(parts) > 1:
            made = []
            for part in parts:
                made.append((part.heads, self._of(part)))
            return Ragged(tuple(made))
        if not parts:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        return self._of(parts[0])

    def _of(self, part: _Part) -> Keys:
        """Return the keys of one part."""
        held, at, m = None, part.at, len(part.k)
        if at is not None or m != self.seen:
            assert self._shape is not None
            shape = (self._shape[0], len(part.heads), m)
            held = Positions(at, self.seen, shape, part.real, self._device)
        return part.k.with_values(part.v, held)

    def _padded(self, found: Sequence[Tensor], empty: int = 0) -> Tensor:
        """Put x [b, heads, m, ...] of each part in one tensor, by head."""
        assert self._shape is not None
        longest = max(x.shape[2] for x in found)
        shape = (*self._shape, longest, *found[0].shape[3:])
        made = found[0].new_full(shape, empty)
        for part, x in zip(self._parts, found, strict=True):
            made[:, list(part.heads), : x.shape[2]] = x
        return made

    @property
    def width(self) -> int:
        """Slots of `keys()`, empty ones included."""
        parts = self._parts
        return len(parts[0].k) if len(parts) == 1 else max((len(p.k) for p in parts), default=0)

    @property
    def held(self) -> float:
        """The mean number of slots of a head."""
        counts = [len(part.heads) * len(part.k) for part in self._parts]
        return sum(counts) / max(sum(len(part.heads) for part in self._parts), 1)

    @property
    def positions(self) -> Tensor:
        """Positions of the slots of `keys()`, [b, g, m], -1 at empty ones."""
        assert self._shape is not None
        b = self._shape[0]
        places = [p.positions(b, self.seen, self._device).tensor() for p in self._parts]
        return (places[0] if not self.ragged else self._padded(places, -1)).long()

    @property
    def counts(self) -> Tensor:
        """Keys that each head keeps, [b, g]."""
        return (self.positions >= 0).sum(-1)

    def note(self, name: str) -> Tensor:
        """Return what was recorded for each slot of `keys()`, [b, g, m]; zeros by default."""
        assert self._shape is not None
        found = []
        for part in self._parts:
            own = part.notes.get(name)
            if own is None:
                own = torch.zeros(self._shape[0], len(part.heads), len(part.k), device=self._device)
            found.append(own)
        return found[0] if len(found) == 1 else self._padded(found)

    def set_note(self, name: str, x: Tensor) -> None:
        """Record x [b, g, m] for each slot of `keys()`; it moves with the slots."""
        alone = len(self._parts) == 1
        for part in self._parts:
            own = x if alone else gather_heads(x, part.heads)[:, :, : len(part.k)]
            part.notes[name] = own.float()

    def choose(self, slots: Tensor) -> None:
        """Keep these slots, and group heads by how many they keep."""
        need_slots(slots, self._shape)
        assert self._shape is not None
        at = self.positions
        real = slots >= 0
        # Rows of a batch may have fewer real keys; empty slots are not kept.
        real &= at.gather(2, slots.clamp(min=0)) >= 0
        slots = torch.where(real, slots, at.shape[2]).sort(-1).values
        counts = real.sum(-1).amax(0).tolist()
        made: list[_Part] = []
        for heads in _alike(counts):
            c = max(1, *map(counts.__getitem__, heads))
            own = slots[:, list(heads), :c]
            held = own < at.shape[2]
            own = own.clamp(max=at.shape[2] - 1)
            own_at = torch.where(held, at[:, list(heads)].gather(2, own), -1)
            own_at = own_at.to(torch.int16 if self.seen <= SHORT else torch.int32)
            k, v = self._taken(heads, own, 0), self._taken(heads, own, 1)
            part = _Part(tuple(heads), k, v, own_at)
            names = {name for p in self._parts for name in p.notes}
            part.notes = {x: self.note(x)[:, list(heads)].gather(2, own) for x in names}
            made.append(part)
        self._parts, self._dropped_at = made, self.seen

    def _taken(self, heads: Sequence[int], slots: Tensor, which: int) -> TokenStore:
        """Copy slots of some heads to a store of their own."""
        first = self._parts[0]
        if self.ragged:
            found = []
            for place, head in enumerate(heads):
                part = next(p for p in self._parts if head in p.heads)
                own = part.heads.index(head)
                x = (part.k, part.v)[which].read()[:, own : own + 1]
                found.append(take_keys(x, slots[:, place : place + 1].clamp(max=x.shape[2] - 1)))
            taken = torch.cat(found, 1)
        else:
            taken = take_keys(gather_heads((first.k, first.v)[which].read(), heads), slots)
        store = (first.k, first.v)[which].empty()
        store.append(taken)
        return store

    def forget(self, horizon: Spans) -> None:
        """Drop keys that no later query can attend to, once they are a third of all."""
        if not self._parts:
            return
        at = self.positions
        needed = horizon.holds(at.clamp_min(0)) & (at >= 0)
        if 3 * int(needed.sum()) > 2 * needed.numel():
            return
        line = torch.arange(at.shape[2], device=at.device)
        self.choose(torch.where(needed, line, -1))

    def settle(self) -> None:
        """Compact the stores."""
        for part in self._parts:
            if part.k.loose:
                part.k.settle()
            if part.v.loose:
                part.v.settle()
            if part.at is not None and part.at.untyped_storage().nbytes() > part.at.nbytes:
                part.at = part.at.clone()

    def check_crop(self, length: int) -> None:
        """Raise if keys were dropped that earlier queries need."""
        need_crop(length, self.seen, self._dropped_at)

    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens."""
        self.check_crop(length)
        if self._shape is not None:
            for part in self._parts:
                m = length
                if part.at is not None:
                    m = len(part.k) - (self.seen - length)
                    part.at = part.at[:, :, :m].clone()
                    part.real = bool((part.at >= 0).all())
                part.k.crop(m)
                part.v.crop(m)
                part.notes = {x: t[:, :, :m] for x, t in part.notes.items()}
        self.seen = length

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        if self._shape is None:
            return
        for part in self._parts:
            part.k.reorder(rows)
            part.v.reorder(rows)
            part.at = None if part.at is None else take_batch(part.at, rows)
            part.notes = {x: take_batch(t, rows) for x, t in part.notes.items()}
        self._shape, self._fits = (len(rows), self._shape[1]), None

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, positions and notes."""
        total = 0
        for part in self._parts:
            tables = [part.at, *part.notes.values()]
            total += part.k.nbytes + part.v.nbytes
            total += sum(x.untyped_storage().nbytes() for x in tables if x is not None)
        return total

    @property
    def file_bytes(self) -> int:
        """Bytes of files."""
        return sum(p.k.file_bytes + p.v.file_bytes for p in self._parts)

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        parts = [
            {"heads": list(p.heads), "k": p.k.state(), "v": p.v.state(), "at": p.at,
             "notes": p.notes}
            for p in self._parts
        ]  # fmt: skip
        shape = None if self._shape is None else list(self._shape)
        return {
            "seen": self.seen, "dropped": self._dropped_at, "shape": shape, "parts": parts,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        self.seen, self._dropped_at = state["seen"], state["dropped"]
        self._shape = None if state["shape"] is None else tuple(state["shape"])
        self._fits = None
        self._parts = []
        for held in state["parts"]:
            k, v = self._kinds[0](), self._kinds[1]()
            k.restore(held["k"])
            v.restore(held["v"])
            part = _Part(tuple(held["heads"]), k, v, held["at"])
            part.notes = dict(held["notes"])
            self._parts.append(part)
            self._device = k.read().device


def _alike(counts: Sequence[int]) -> list[list[int]]:
    """Group heads of similar counts.

    >>> _alike([10, 99, 100, 10])
    [[0, 3], [1, 2]]
    """
    if not counts or min(counts) == max(counts):
        return [list(range(len(counts)))] if counts else []
    found: list[list[int]] = []
    for head in sorted(range(len(counts)), key=lambda h: counts[h]):
        if found and counts[head] - counts[found[-1][0]] <= ALIKE * counts[head]:
            found[-1].append(head)
        else:
            found.append([head])
    return [sorted(heads) for heads in found]


def need_crop(length: int, seen: int, dropped_at: int) -> None:
    """Raise unless a memory can be cropped to `length`."""
    if not 0 <= length <= seen:
        fail(ValueRangeError, "length", length, f"0 to {seen}", "crop to what was seen")
    if length < dropped_at and length < seen:
        fail(
            CapabilityError, "length", length,
            f"at least {dropped_at}: keys that earlier queries need were dropped",
            "decode without speculation, or keep every key",
        )  # fmt: skip
