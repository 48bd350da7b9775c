"""Keys in pages of a pool, as caches of servers hold them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.heads import as_rows, take_rows
from regard.core.keys import At, Dense, Keys, written


@dataclass(frozen=True, eq=False, repr=False)
class Paged(Keys):
    """Pages of `page` tokens in a pool; a table says which pages belong to which row, in order.

    k [pages, x, page, d], v [pages, x, page, e]; `table` int [b, t, pages of a row] with t = 1
    where a page holds all heads (x = g), or t = g where every head has pages of its own (x = 1);
    `lengths` int [b, t] counts the keys. `at` [b, t, m] are positions, where key j is not at j.

    >>> pages = torch.randn(8, 2, 16, 4)
    >>> table, lengths = torch.tensor([[[3, 5]], [[0, 1]]]), torch.tensor([[20], [32]])
    >>> keys = Paged(pages, pages, table, lengths)
    >>> keys, keys.dense().positions[0, 18:22].tolist()
    (Paged(b=2, g=2, m=32, d=4, e=4, 8,240 bytes), [18, 19, -1, -1])
    """

    form: ClassVar[str] = "paged"
    k: Tensor
    v: Tensor
    table: Tensor
    lengths: Tensor
    at: At = None
    # Whether the slots within the lengths all hold real keys.
    real: bool = True
    # The longest of the lengths, where it is known without waiting for the device.
    longest: int | None = None

    def __post_init__(self) -> None:
        k, v, table = self.k, self.v, self.table
        if k.dim() != 4 or v.dim() != 4 or v.shape[:3] != k.shape[:3]:
            fail(
                ShapeError, "k", f"{shape_of(k)} with v {shape_of(v)}",
                "[pages, g, page, d] and [pages, g, page, e]", "give both one shape but for e",
            )  # fmt: skip
        whole = table.dim() == 3 and (table.shape[1] == 1 or k.shape[1] == 1)
        if not whole or table.is_floating_point():
            fail(
                ShapeError, "table", shape_of(table),
                "integers [b, 1, pages], or [b, g, pages] over pages of one head",
                "add an axis: table[:, None]",
            )  # fmt: skip
        if self.lengths.shape != table.shape[:2] or self.lengths.is_floating_point():
            fail(
                ShapeError, "lengths", shape_of(self.lengths), f"integers {list(table.shape[:2])}",
                "count the keys of each row of the table",
            )  # fmt: skip
        room = k.shape[2] * table.shape[2]
        if self.lengths.device.type == "cpu" and self.lengths.numel():
            least, most = int(self.lengths.min()), int(self.lengths.max())
            if not 0 <= least <= most <= room:
                fail(
                    ValueRangeError, "lengths", [least, most], f"0 to {room} keys",
                    "count keys that the pages have room for",
                )  # fmt: skip

    @cached_property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes (b, g, m, d, e): m is the room of the table, or the longest row if known."""
        _, x, page, d = self.k.shape
        b, t, pages = self.table.shape
        m = page * pages if self.longest is None else self.longest
        return b, t * x, m, d, self.v.shape[3]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return pages, table and lengths."""
        return self.k, self.v, self.table, self.lengths

    @property
    def nbytes(self) -> int:
        """Bytes of pages, table, lengths and positions."""
        at = self.at.nbytes if isinstance(self.at, Tensor) else 0
        return at + sum(x.nbytes for x in self.tensors())

    @property
    def count(self) -> float:
        """Keys that a head holds, on average."""
        return float(self.lengths.float().mean())

    @property
    def full(self) -> bool:
        """Whether the slots within the lengths all hold real keys."""
        return self.real

    @cached_property
    def dense_full(self) -> bool:
        """Whether all rows are equally long, and full."""
        on_cpu = self.lengths.device.type == "cpu"
        return self.real and on_cpu and bool((self.lengths == self.m).all())

    @property
    def placed(self) -> bool:
        """Whether keys may have other positions than 0, 1, 2, ..."""
        return self.at is not None

    @cached_property
    def positions(self) -> Tensor | None:
        """Positions [b, t, m], -1 behind the end of a row; None where key j of each row is at j."""
        if self.at is None and self.dense_full:
            return None
        line = torch.arange(self.m, device=self.k.device)
        inside, at = line < self.lengths[..., None], written(self.at)
        return torch.where(inside, line if at is None else at[..., : self.m].long(), -1)

    def dense(self) -> Dense:
        """Gather the pages of each row, or head, in one tensor."""
        b, g, m, _, _ = self.shape
        at = self.positions
        k, v = self._gathered(self.k), self._gathered(self.v)
        if at is None:
            return Dense(k, v)
        empty = (at.expand(b, g, m) < 0)[..., None]
        # Behind the end of a row a page holds anything, and nothing times NaN is NaN.
        at = at[:, 0] if self.table.shape[1] == 1 else at.expand(b, g, m)
        return Dense(k.masked_fill(empty, 0), v.masked_fill(empty, 0), at)

    def _gathered(self, x: Tensor) -> Tensor:
        """Copy the pages of each row side by side, once: x [pages, x, page, d] to [b, g, m, d]."""
        b, t, pages = self.table.shape
        index = self.table.flatten().long()
        # [x, b t pages of a row, page, d] -> [b, t x, m, d]; one of t and x is 1.
        if x.device.type == "cpu" and len(index):  # indexing is slow where pages lie apart
            made = torch.cat([x[page] for page in index.tolist()], 1)
        else:
            made = x[index].transpose(0, 1)
        made = made.reshape(x.shape[1] * b * t, pages * x.shape[2], x.shape[3])
        heads = made.view(x.shape[1], b, *made.shape[1:]).transpose(0, 1) if t == 1 else None
        made = made.view(b, t, *made.shape[1:]) if heads is None else heads
        return made[:, :, : self.m]

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copy keys of slots [b, g, c] alone, from the pages that they lie in."""
        k, v = as_rows(self.k), as_rows(self.v)
        if k is None or v is None or self.requires_grad:
            return super().gather(slots)
        page, (b, g, c) = self.k.shape[2], slots.shape
        table = self.table.long().expand(b, g, -1)
        pages, heads = table.gather(2, slots // page), torch.arange(g, device=slots.device)
        heads = heads if self.table.shape[1] == 1 else torch.zeros_like(heads)
        found = []
        for x, rows in ((self.k, k), (self.v, v)):
            over_page, over_head, over_slot = (step // x.stride(2) for step in x.stride()[:3])
            at = pages * over_page + heads[:, None] * over_head + slots % page * over_slot
            found.append(take_rows(rows, at.flatten()).view(b, g, c, rows.shape[1]))
        where = self.positions
        if where is not None:
            empty = where.expand(b, g, -1).gather(2, slots)[..., None] < 0
            found = [x.masked_fill(empty, 0) for x in found]
        return found[0], found[1]

    def since(self, first: int) -> Tensor:
        """Return the keys from a slot on, of the pages that hold them alone."""
        if not self.dense_full:
            return super().since(first)
        skipped = min(first, max(self.m - 1, 0)) // self.k.shape[2]
        if not skipped:
            return self._gathered(self.k)[:, :, first:]
        before = skipped * self.k.shape[2]
        last = replace(
            self, table=self.table[:, :, skipped:], lengths=self.lengths - before, at=None,
            longest=self.m - before,
        )  # fmt: skip
        return last._gathered(last.k)[:, :, first - before :]
