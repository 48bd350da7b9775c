"""Pages for every head of every row, which one kernel reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.errors import ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.key_forms import Paged
from regard.core.keys import At, Later
from regard.core.spans import Spans
from regard.core.support.bands import need_count
from regard.memories.base import KeyMemory, need_keys, need_same_heads, need_slots
from regard.memories.kept import need_crop


class HeadPages(KeyMemory):
    """Keys of which each head may keep its own, for a GPU: as `Kept`, but one launch for all heads.

    A key head of a row is a sequence: a table lists its pages of `size` tokens, and `choose` packs
    them again, so that ragged heads cost what they keep plus half a page. A kernel reads the pages
    of `keys()` in place (`regard.run.paged`).

    >>> memory = HeadPages(size=4)
    >>> memory.extend(torch.randn(1, 2, 100, 8), torch.randn(1, 2, 100, 8))
    >>> slots = torch.full((1, 2, 50), -1)
    >>> slots[0, 0], slots[0, 1, :10] = torch.arange(50, 100), torch.arange(90, 100)
    >>> memory.choose(slots)
    >>> memory.lengths, memory.keys()
    ([50, 10], Paged(b=1, g=2, m=50, d=8, e=8, 4,208 bytes))
    """

    # Heads may hold different keys.
    ragged = True

    def __init__(self, size: int = 16) -> None:
        need_count("size", size)
        self.size, self.seen = size, 0
        # Keys of each sequence, row by row and head by head.
        self.lengths: list[int] = []
        self._shape: tuple[int, int] | None = None
        # Pages k, v [pages, size, d], and the pages of each sequence: int32 [b g, pages].
        self._pages: list[Tensor] = []
        self._table = torch.zeros(0, 0, dtype=torch.int32)
        # Positions int32 [b g, c] of the first slots, -1 for none; the newest tokens follow.
        self._at: Tensor | None = None
        self._written: list[int] = []
        # Whether some slot may hold no real key.
        self._holes = False
        self._dropped_at = 0

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens to every head."""
        need_keys(k, v, keep)
        need_same_heads(k, self._shape)
        b, g, n = k.shape[:3]
        if self._shape is None:
            self._shape, self.lengths, self._written = (b, g), [0] * (b * g), [0] * (b * g)
            self._pages = [x.new_empty(0, self.size, x.shape[3]) for x in (k, v)]
            self._table = self._table.to(k.device).new_zeros(b * g, 0)
        if keep is not None and not bool(keep.all()):
            self._place(keep)
        self._make_room(n)
        first = torch.tensor(self.lengths, device=k.device)
        places = first[:, None] + torch.arange(n, device=k.device)
        self._write(places, k.flatten(0, 1), v.flatten(0, 1))
        self.lengths = [x + n for x in self.lengths]
        self.seen += n

    def _place(self, keep: Tensor) -> None:
        """Record the positions of tokens about to be appended, some of them padding."""
        new = torch.arange(self.seen, self.seen + keep.shape[1], device=keep.device)
        new = torch.where(keep, new, -1).repeat_interleave((self._shape or (1, 1))[1], 0)
        old = self._positions()
        where = torch.tensor(self.lengths, device=keep.device)[:, None]
        made = pad(old, (0, keep.shape[1]), value=-1)
        made.scatter_(1, where + torch.arange(keep.shape[1], device=keep.device), new.int())
        self._holes = True
        self._at, self._written = made, [x + keep.shape[1] for x in self.lengths]

    def _make_room(self, n: int) -> None:
        """Allocate to sequences the pages that n more tokens need."""
        size, have = self.size, len(self._pages[0])
        more = [-(-(x + n) // size) - -(-x // size) for x in self.lengths]
        if not any(more):
            return
        device = self._table.device
        wide = max(-(-(x + n) // size) for x in self.lengths)
        self._table = pad(self._table, (0, max(wide - self._table.shape[1], 0)))
        rows = [i for i, count in enumerate(more) for _ in range(count)]
        places = [-(-self.lengths[i] // size) + c for i, x in enumerate(more) for c in range(x)]
        new = torch.arange(have, have + len(rows), dtype=torch.int32, device=device)
        self._table[torch.tensor(rows), torch.tensor(places)] = new
        self._pages = [torch.cat((x, x.new_zeros(len(rows), *x.shape[1:]))) for x in self._pages]

    def _write(self, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k, v [b g, n, d] of every sequence at its places [b g, n]."""
        page = self._table.gather(1, (places // self.size).clamp(min=0)).long()
        slot = (page * self.size + places % self.size).flatten()
        for held, x in zip(self._pages, (k, v), strict=True):
            held.view(-1, held.shape[2])[slot] = x.flatten(0, 1).detach()

    def _positions(self) -> Tensor:
        """Return positions of the slots of each sequence, int32 [b g, longest], -1 past its end."""
        device = self._table.device
        line = torch.arange(max(self.lengths, default=0), device=device)
        length = torch.tensor(self.lengths, device=device)[:, None]
        found = torch.where(line < length, line + self.seen - length, -1).int()
        if self._at is None:
            return found
        written = torch.tensor(self._written, device=device)[:, None]
        known = pad(self._at, (0, found.shape[1] - self._at.shape[1]), value=-1)
        return torch.where(line < written, known, found)

    def keys(self) -> Paged:
        """Return the pages, and the table of each head."""
        if self._shape is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        device = self._table.device
        lengths = torch.tensor(self.lengths, dtype=torch.int32, device=device)
        at: At = None
        if self._at is not None or min(self.lengths) != self.seen:
            shape = self._shape
            at = Later(lambda: self._positions().unflatten(0, shape), not self._holes)
        k, v = (x[:, None] for x in self._pages)
        return Paged(
            k, v, self._table.unflatten(0, self._shape), lengths.view(self._shape), at,
            not self._holes, max(self.lengths),
        )  # fmt: skip

    @property
    def held(self) -> float:
        """The mean number of slots of a head."""
        return sum(self.lengths) / max(len(self.lengths), 1)

    @property
    def counts(self) -> Tensor:
        """Keys that each head keeps, [b, g]."""
        return (self._positions() >= 0).sum(-1).view(self._shape or (0, 0))

    def choose(self, slots: Tensor) -> None:
        """Keep these slots, and pack them into new pages."""
        need_slots(slots, self._shape)
        at = self._positions()
        own = slots.flatten(0, 1)
        real = (own >= 0) & (at.gather(1, own.clamp(min=0)) >= 0)
        own = torch.where(real, own, at.shape[1]).sort(-1).values
        counts = real.sum(-1).clamp(min=1)
        own = own[:, : int(counts.max())].clamp(max=at.shape[1] - 1)
        filled = torch.arange(own.shape[1], device=own.device) < real.sum(-1, keepdim=True)
        page = self._table.gather(1, own // self.size).long()
        from_slot = page * self.size + own % self.size
        each = -(-counts // self.size)
        first = each.cumsum(0) - each
        table = first[:, None] + torch.arange(int(each.max()), device=own.device)
        line = torch.arange(own.shape[1], device=own.device)
        to_slot = (first[:, None] * self.size + line)[filled]
        made = []
        for held in self._pages:
            new = held.new_zeros(int(each.sum()), self.size, held.shape[2])
            new.view(-1, held.shape[2])[to_slot] = held.view(-1, held.shape[2])[from_slot[filled]]
            made.append(new)
        self._pages, self.lengths = made, counts.tolist()
        self._table = torch.where(
            torch.arange(table.shape[1], device=own.device) < each[:, None], table, 0
        ).int()
        self._at = torch.where(filled, at.gather(1, own), -1)
        self._written, self._dropped_at = list(self.lengths), self.seen
        self._holes = not bool(real.any(-1).all())

    def forget(self, horizon: Spans) -> None:
        """Drop keys that no later query can attend to, once they are a third of all."""
        if self._shape is None:
            return
        at = self._positions().unflatten(0, self._shape)
        needed = horizon.holds(at.clamp_min(0)) & (at >= 0)
        if 3 * int(needed.sum()) <= 2 * sum(self.lengths):
            line = torch.arange(at.shape[2], device=at.device)
            self.choose(torch.where(needed, line, -1))

    def check_crop(self, length: int) -> None:
        """Raise if keys were dropped that earlier queries need."""
        need_crop(length, self.seen, self._dropped_at)

    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens."""
        self.check_crop(length)
        self.lengths = [max(x - (self.seen - length), 0) for x in self.lengths]
        self._written = [min(a, b) for a, b in zip(self._written, self.lengths, strict=True)]
        if self._at is not None:
            self._at = self._at[:, : max(self._written, default=0)]
        self.seen = length
        self._pack()

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        if self._shape is None:
            return
        g = self._shape[1]
        own = (rows[:, None] * g + torch.arange(g, device=rows.device)).flatten()
        self._table = take_batch(self._table, own)
        self._at = None if self._at is None else take_batch(self._at, own)
        order = own.tolist()
        self.lengths = [self.lengths[i] for i in order]
        self._written = [self._written[i] for i in order]
        self._shape = len(rows), g
        self._pack()

    def _pack(self) -> None:
        """Give every sequence its own pages, in order, and free the others."""
        counts = [-(-x // self.size) for x in self.lengths]
        wide = max(counts, default=0)
        device = self._table.device
        line = torch.arange(wide, device=device)
        filled = line < torch.tensor(counts, device=device)[:, None]
        taken = self._table[:, :wide][filled].long()
        self._pages = [x.index_select(0, taken) for x in self._pages]
        self._table = torch.zeros(len(counts), wide, dtype=torch.int32, device=device)
        self._table[filled] = torch.arange(len(taken), dtype=torch.int32, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of pages, tables and positions."""
        held = [*self._pages, self._table, *([] if self._at is None else [self._at])]
        return sum(x.untyped_storage().nbytes() for x in held)

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        return {
            "seen": self.seen, "dropped": self._dropped_at, "lengths": list(self.lengths),
            "shape": None if self._shape is None else list(self._shape),
            # Later steps write to pages in place, so a state has copies.
            "pages": [x.clone() for x in self._pages], "table": self._table, "at": self._at,
            "written": list(self._written), "holes": self._holes,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        pages = state["pages"]
        if pages and pages[0].shape[1] != self.size:
            fail(
                ValueRangeError, "state", f"pages of {pages[0].shape[1]}", f"{self.size}",
                "build the memory as it was saved",
            )  # fmt: skip
        self.seen, self._dropped_at = state["seen"], state["dropped"]
        self.lengths, self._written = list(state["lengths"]), list(state["written"])
        self._shape = None if state["shape"] is None else tuple(state["shape"])
        self._pages = [x.clone() for x in pages]
        self._table, self._at = state["table"], state["at"]
        self._holes = state["holes"]
