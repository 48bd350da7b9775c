"""Reducers: each reads blocks of attention as they pass and keeps what it needs.

A probe adds its own: a class with `take(block)`, handed to `survey(..., reducers=[...])`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.partial import wide
from regard.core.survey import octave

if TYPE_CHECKING:
    from regard.run.row_blocks import RowBlock


class Reducer:
    """Reads blocks; `finish` gives named tensors. One that is `last` may write over scores."""

    last = False

    def take(self, block: RowBlock) -> None:
        """Read one block of rows of one head."""
        raise NotImplementedError

    def finish(self) -> dict[str, Tensor]:
        """Return what was found."""
        return {}


class _Rows(Reducer):
    """One number or a few for each query."""

    def __init__(self, call: Call, name: str, *more: int) -> None:
        self.name = name
        self.found = _zeros(call, call.n, *more)

    def finish(self) -> dict[str, Tensor]:
        """Return what was found."""
        return {self.name: self.found}


class Lse(_Rows):
    """Log of all weight."""

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        assert block.lse is not None
        self.found[block.b, block.h, block.rows] = block.lse


class Entropy(_Rows):
    """-sum p log p = log(total) - sum(size log size) / total."""

    last = True

    def __init__(self, call: Call, name: str) -> None:
        super().__init__(call, name)
        self.total = torch.zeros_like(self.found)

    def take(self, block: RowBlock) -> None:
        """Read one block, and write products over its scores: a room of their own is slow."""
        inner = self.found[block.b, block.h, block.rows]
        if block.top is not None:  # scores are less `top`: log size
            torch.sum(block.scores.mul_(block.size), 1, out=inner)
        else:
            torch.sum(torch.special.xlogy(block.size, block.size), 1, out=inner)
        self.total[block.b, block.h, block.rows] = block.total

    def finish(self) -> dict[str, Tensor]:
        """Return what was found."""
        total = self.total.clamp(min=torch.finfo(self.total.dtype).tiny)
        found = torch.log(total) - self.found / total
        return {self.name: torch.where(self.total > 0, found, 0.0).clamp(min=0.0)}


class SinkShare(_Rows):
    """Share of each row that a sink takes."""

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        if block.sink is not None:
            self.found[block.b, block.h, block.rows] = 1.0 - block.sink


class Top(Reducer):
    """The largest weights of each query and their keys; no key is -1."""

    def __init__(self, call: Call, count: int, names: tuple[str, str]) -> None:
        self.count, self.names = count, names
        self.weights = _zeros(call, call.n, count)
        self.keys = torch.full(self.weights.shape, -1, dtype=torch.long, device=call.q.device)

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        count = min(self.count, block.size.shape[1])
        if not count:
            return
        size, key = block.largest if count == 1 else block.size.topk(count, dim=1)
        where = (block.b, block.h, block.rows, slice(0, count))
        self.weights[where] = size * block.share[:, None]
        self.keys[where] = torch.where(size > 0, key + block.cols.start, -1)

    def finish(self) -> dict[str, Tensor]:
        """Return what was found."""
        if self.names[0] == "row_max":
            return {"row_max": self.weights[..., 0], "row_max_key": self.keys[..., 0]}
        return {self.names[0]: self.weights, self.names[1]: self.keys}


class Received(Reducer):
    """Mass that each key receives, and how many queries may meet it."""

    def __init__(self, call: Call, tile: int) -> None:
        self.m = call.m
        self.found = _zeros(call, -(-call.m // tile) * tile)
        self.seen = _zeros(call, self.found.shape[2])

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        given, place = block.given, block.place
        self.found[block.b, block.h, block.cols] += given.sum(0) if len(given) > 1 else given[0]
        if block.h == place.heads.start:  # the same for all that share the place
            seen = self.seen[block.b, place.heads.start : place.heads.stop]
            seen[:, block.cols] += len(block.share)
            if place.hidden is not None:
                seen[:, place.asked] -= place.hidden.sum(0)

    def finish(self) -> dict[str, Tensor]:
        """Return what was found."""
        return {"received": self.found[..., : self.m], "seen": self.seen[..., : self.m]}


class Given(Reducer):
    """What each key is given by queries of different weight: sum_i rows[b, h, i] w_ij, [b, h, m].

    `rows` [b, h or 1, n]. The product of a row vector with a matrix of weights that is never made.
    """

    def __init__(self, call: Call, rows: Tensor) -> None:
        self.rows = rows.to(wide(call.q.dtype)).expand(call.b, call.h, call.n)
        self.found = _zeros(call, call.m)

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        given = block.size.T @ (block.share * self.rows[block.b, block.h, block.rows])
        keys = slice(block.cols.start, min(block.cols.stop, self.found.shape[2]))
        self.found[block.b, block.h, keys] += given[: keys.stop - keys.start]


class TileMapReducer(Reducer):
    """Sum and largest weight of each tile: a picture of the whole matrix."""

    def __init__(self, call: Call, tile: int) -> None:
        self.tile = tile
        shape = (-(-call.n // tile), -(-call.m // tile))
        self.sum, self.max = _zeros(call, *shape), _zeros(call, *shape)

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        first = block.rows.start // self.tile
        rows = slice(first, first + len(block.tiles))
        cols = slice(block.cols.start // self.tile, block.cols.stop // self.tile)
        self.sum[block.b, block.h, rows, cols] += block.given.unflatten(1, (-1, self.tile)).sum(-1)
        tops = block.tile_top * block.share[:, None]
        for t, some in enumerate(block.tiles, first):
            here = self.max[block.b, block.h, t, cols]
            torch.maximum(here, tops[some].amax(0), out=here)

    def finish(self) -> dict[str, Tensor]:
        """Return what was found."""
        return {"tile_sum": self.sum, "tile_max": self.max}


class Distance(Reducer):
    """Mass by distance j - i: each up to `near`, octaves of the past and the future beyond."""

    def __init__(self, call: Call, near: int) -> None:
        self.near, self.n, self.m = near, call.n, call.m
        octaves = max(call.n, call.m, 2).bit_length() + 1
        if call.placed:
            octaves = 40  # positions may lie anywhere
        self.at, self.far = _zeros(call, 2 * near + 1), _zeros(call, 2, octaves)

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        apart = block.j - block.i[:, None]
        weights = block.weights.flatten()
        close = apart.abs() <= self.near
        at = self.at[block.b, block.h]
        at.index_add_(0, (apart + self.near)[close], block.weights[close])
        far = self.far[block.b, block.h].view(-1)
        place = octave(apart.abs().clamp(min=1)) + (apart > 0) * self.far.shape[3]
        other = weights.view(apart.shape).masked_fill(close, 0.0)
        far.index_add_(0, place.flatten(), other.flatten())

    def finish(self) -> dict[str, Tensor]:
        """Return what was found."""
        return {"distance_near": self.at, "distance_far": self.far}


class Apart(_Rows):
    """Mean distance of what each query looks at, without a matrix of distances where it can."""

    def take(self, block: RowBlock) -> None:
        """Read one block; counted from its first row, so that small distances are exact."""
        first = block.i[:1]
        behind = (first - block.j).to(block.size)
        found = torch.mv(block.size, behind)
        found += block.total * (block.i - first).to(block.size)
        late = (block.j > block.i.amin()).nonzero()
        if len(late):  # a key that stands k after a query was counted as -k
            ahead = slice(int(late[0]), int(late[-1]) + 1)
            after = (block.j[ahead] - block.i[:, None]).clamp(min=0)
            found += 2 * torch.linalg.vecdot(block.size[:, ahead], after.to(found))
        self.found[block.b, block.h, block.rows] = found * block.share


class Sets(_Rows):
    """Mass of each query on sets of keys, given as columns [m, sets]."""

    def __init__(self, call: Call, columns: Tensor, tile: int) -> None:
        super().__init__(call, "sets", columns.shape[1])
        self.columns = torch.nn.functional.pad(columns, (0, 0, 0, -len(columns) % tile))

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        mass = block.size @ self.columns[block.cols]
        self.found[block.b, block.h, block.rows] = mass * block.share[:, None]


class ByValue(Reducer):
    """Another reducer, with each weight multiplied by the length of its value."""

    def __init__(self, call: Call, inner: Reducer, tile: int) -> None:
        self.inner = inner
        lengths = expand_heads(call.v, call.h).to(wide(call.q.dtype)).norm(dim=-1)
        self.lengths = torch.nn.functional.pad(lengths, (0, -call.m % tile))

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        size = block.size * self.lengths[block.b, block.h, block.cols]
        size = size.masked_fill(block.size == 0, 0.0)  # what holds no number is not read
        # Without `top` and `tops` the block is read by its sizes alone.
        self.inner.take(replace(block, size=size, top=None, tops=None))

    def finish(self) -> dict[str, Tensor]:
        """Return what was found."""
        found = self.inner.finish()
        return {f"{name}_by_value": x for name, x in found.items() if name != "seen"}


def make_reducers(
    call: Call, want: tuple[str, ...], columns: Tensor, tile: int, top: int, near: int
) -> list[Reducer]:
    """Build a reducer for each thing wanted."""
    made: list[Reducer] = []
    for one in want:
        plain = one.removesuffix("_by_value")
        reducer = _make(call, plain, columns, tile, top, near)
        if reducer is not None:
            made.append(reducer if plain == one else ByValue(call, reducer, tile))
    return made


def _make(call: Call, name: str, columns: Tensor, tile: int, top: int, near: int) -> Reducer | None:
    if name == "lse" and call.rule.weigh.sums:
        return None
    if name == "max":
        return Top(call, 1, ("row_max", "row_max_key"))
    if name == "top":
        return Top(call, top, ("top_weights", "top_keys"))
    makers: dict[str, Callable[[], Reducer]] = {
        "lse": lambda: Lse(call, "lse"),
        "entropy": lambda: Entropy(call, "entropy"),
        "sink_share": lambda: SinkShare(call, "sink_share"),
        "received": lambda: Received(call, tile),
        "tiles": lambda: TileMapReducer(call, tile),
        "distance": lambda: Distance(call, near),
        "apart": lambda: Apart(call, "apart"),
        "sets": lambda: Sets(call, columns, tile),
    }
    return makers[name]() if name in makers else None


def _zeros(call: Call, *shape: int) -> Tensor:
    dtype = wide(call.q.dtype)
    return torch.zeros(call.b, call.h, *shape, dtype=dtype, device=call.q.device)
