"""Pages of keys in a shared pool: rows with a common prefix share pages, copied on write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ShapeError, ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.key_forms import Paged as PagedKeys
from regard.core.method import method
from regard.core.spans import Spans
from regard.core.support.bands import need_count
from regard.memories.base import KeyMemory, extended_positions, need_keys
from regard.memories.kept import need_crop


class PoolError(CapabilityError):
    """The pool has no page left."""


class Pool:
    """Pages of `size` tokens: k [pages, g, size, d], v [pages, g, size, e], and reference counts.

    It doubles when it is full, up to `limit` pages. A page is free, or held by one table or more.

    >>> pool = Pool(size=16, limit=2)
    >>> pages = [pool.take(), pool.take()]
    >>> pool.hold(pages[0]); pool.drop(pages[0]); pool.held
    2
    """

    def __init__(self, size: int = 16, limit: int | None = None) -> None:
        need_count("size", size)
        self.size, self.limit = size, limit
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.counts: list[int] = []
        self.free: list[int] = []

    def fit(self, k: Tensor, v: Tensor) -> None:
        """Allocate the tensors for the first keys; check later keys against them."""
        if self.k is None or self.v is None:
            shape = len(self.counts), k.shape[1], self.size
            self.k, self.v = (x.new_empty(*shape, x.shape[3]) for x in (k, v))
        elif self.k.shape[1] != k.shape[1] or self.k.shape[3] != k.shape[3]:
            fail(
                ShapeError, "k", f"{k.shape[1]} heads of {k.shape[3]}",
                f"{self.k.shape[1]} heads of {self.k.shape[3]}, as the pool holds",
                "use another pool for layers of another shape",
            )  # fmt: skip

    def take(self) -> int:
        """Return a free page, held once."""
        if not self.free:
            have = len(self.counts)
            more = max(have, 1) if self.limit is None else min(max(have, 1), self.limit - have)
            if more < 1:
                fail(
                    PoolError, "pool", f"{have} pages, all held", "a free page",
                    "end or swap out a sequence, or raise the limit",
                )  # fmt: skip
            self.free = list(range(have + more - 1, have - 1, -1))
            self.counts += [0] * more
            if self.k is not None and self.v is not None:
                self.k, self.v = (
                    torch.cat((x, x.new_empty(more, *x.shape[1:]))) for x in (self.k, self.v)
                )
        page = self.free.pop()
        self.counts[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Hold a page once more."""
        self.counts[page] += 1

    def drop(self, page: int) -> None:
        """Release a page; it is free when nothing holds it."""
        self.counts[page] -= 1
        if not self.counts[page]:
            self.free.append(page)

    def own(self, page: int) -> int:
        """Return a page that may be written: the page itself if held once, else a copy."""
        if self.counts[page] == 1:
            return page
        copy = self.take()
        assert self.k is not None
        assert self.v is not None
        self.k[copy], self.v[copy] = self.k[page], self.v[page]
        self.drop(page)
        return copy

    @property
    def held(self) -> int:
        """Count the pages that are held."""
        return len(self.counts) - len(self.free)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, free ones included."""
        return sum(x.untyped_storage().nbytes() for x in (self.k, self.v) if x is not None)


@method("paged_attention")
class Paged(KeyMemory):
    """Rows of pages. `fork` and `reorder` copy tables only; a shared page is copied on write.

    `keys()` returns the pages, which a kernel reads in place.

    >>> pool = Pool(size=16)
    >>> memory = Paged(pool)
    >>> memory.extend(torch.randn(1, 2, 100, 4), torch.randn(1, 2, 100, 4))
    >>> memory.repeat(4, batch=1)                       # four beams
    >>> memory.seen, pool.held
    (100, 7)
    >>> memory.extend(torch.randn(4, 2, 1, 4), torch.randn(4, 2, 1, 4)); pool.held
    10
    """

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = Pool() if pool is None else pool
        self.seen = 0
        self.tables: list[list[int]] | None = None
        self._at: Tensor | None = None  # positions [b, seen], where some are padding

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens to each row."""
        need_keys(k, v, keep)
        b, n = k.shape[0], k.shape[2]
        if self.tables is None:
            self.tables = [[] for _ in range(b)]
        if len(self.tables) != b:
            fail(ShapeError, "k", f"batch {b}", f"{len(self.tables)}", "start a new memory")
        self._at = extended_positions(self._at, self.seen, k, keep)
        pool, size = self.pool, self.pool.size
        pool.fit(k, v)
        for row, table in enumerate(self.tables):
            done = 0
            while done < n:
                slot = (self.seen + done) % size
                if slot == 0:
                    table.append(pool.take())
                else:
                    table[-1] = pool.own(table[-1])
                some = min(size - slot, n - done)
                assert pool.k is not None
                assert pool.v is not None
                pool.k[table[-1], :, slot : slot + some] = k[row, :, done : done + some].detach()
                pool.v[table[-1], :, slot : slot + some] = v[row, :, done : done + some].detach()
                done += some
        self.seen += n

    def keys(self) -> PagedKeys:
        """Return the pages, and the table of each row."""
        if not self.tables or self.pool.k is None or self.pool.v is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        k, v, at = self.pool.k, self.pool.v, self._at
        table = torch.tensor(self.tables, dtype=torch.int32, device=k.device)[:, None]
        lengths = torch.full((len(self.tables), 1), self.seen, dtype=torch.int32, device=k.device)
        where = None if at is None else at[:, None]
        return PagedKeys(k, v, table, lengths, where, at is None, self.seen)

    def fork(self) -> Paged:
        """Build a second memory of the same tokens; pages are copied when either is extended."""
        other = Paged(self.pool)
        other.seen, other._at = self.seen, self._at
        other.tables = None if self.tables is None else [list(table) for table in self.tables]
        for table in other.tables or ():
            for page in table:
                self.pool.hold(page)
        return other

    def free(self) -> None:
        """Release every page."""
        for table in self.tables or ():
            for page in table:
                self.pool.drop(page)
        self.tables, self.seen, self._at = None, 0, None

    def forget(self, horizon: Spans) -> None:
        """Keep all: a page stays until its row ends."""

    def crop(self, length: int) -> None:
        """Drop the pages past `length` tokens."""
        need_crop(length, self.seen, 0)
        for table in self.tables or ():
            while len(table) > -(-length // self.pool.size):
                self.pool.drop(table.pop())
        self._at = None if self._at is None else self._at[:, :length]
        self.seen = length

    def reorder(self, rows: Tensor) -> None:
        """Continue rows from others: their tables are copied, their pages are not."""
        if self.tables is None:
            return
        new = [list(self.tables[row]) for row in rows.tolist()]
        _swap(self.pool, self.tables, new)
        self.tables = new
        self._at = None if self._at is None else take_batch(self._at, rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that this memory holds, each counted once, and of its tables.

        Free pages of the pool count too, in proportion to the pages held.
        """
        pages = {page for table in self.tables or () for page in table}
        entries = sum(len(table) for table in self.tables or ())
        at = 0 if self._at is None else self._at.untyped_storage().nbytes()
        own = len(pages) * self.pool.nbytes / max(self.pool.held, 1)
        return round(own) + 4 * entries + at

    def state(self) -> dict[str, Any]:
        """Return the tokens, without the pool."""
        read = None if self.tables is None else self.read()
        return {
            "seen": self.seen, "at": self._at,
            "k": None if read is None else read.k, "v": None if read is None else read.v,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file, into pages of our pool."""
        self.free()
        if state["k"] is not None:
            self.extend(state["k"], state["v"])
        self._at = state["at"]


def _swap(pool: Pool, old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]) -> None:
    """Hold the new pages before releasing the old ones, so that none is freed in between."""
    for table in new:
        for page in table:
            pool.hold(page)
    for table in old:
        for page in table:
            pool.drop(page)
