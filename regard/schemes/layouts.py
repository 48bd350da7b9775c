"""Layouts: which positions of a sequence each rank holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail
from regard.core.rule import Rule
from regard.core.tilemap import EMPTY, Grid, tile_states, tiled

# The most tiles of a sequence that `balanced` assigns.
TILES = 1024


@dataclass(frozen=True)
class Layout(ABC):
    """An assignment of positions 0 to `length` - 1 to `world` ranks.

    >>> layout = Contiguous(7, 3)
    >>> [layout.positions(rank).tolist() for rank in range(3)]
    [[0, 1, 2], [3, 4], [5, 6]]
    >>> layout.take(torch.arange(7) * 10, rank=1).tolist()
    [30, 40]
    """

    length: int
    world: int

    def __post_init__(self) -> None:
        for name, least in (("length", 0), ("world", 1)):
            x = getattr(self, name)
            if not isinstance(x, int) or isinstance(x, bool) or x < least:
                fail(ValueRangeError, name, repr(x), f"a whole number of at least {least}",
                     "count the tokens and the ranks")  # fmt: skip

    @abstractmethod
    def owner_of(self, positions: Tensor) -> Tensor:
        """Return the rank that holds each position."""

    def positions(self, rank: int) -> Tensor:
        """Return the positions [c] that a rank holds, in ascending order, on the CPU."""
        if not 0 <= rank < self.world:
            fail(ValueRangeError, "rank", rank, f"0 to {self.world - 1}", "pass a rank of the mesh")
        return _of_ranks(self)[rank]

    def counts(self) -> tuple[int, ...]:
        """Return how many tokens each rank holds."""
        return tuple(len(self.positions(rank)) for rank in range(self.world))

    def take(self, x: Tensor, rank: int, dim: int = -1) -> Tensor:
        """Select the tokens of a rank from x, whose axis `dim` has all tokens."""
        if x.shape[dim] != self.length:
            fail(
                ShapeError, "x", f"{x.shape[dim]} tokens along axis {dim}", f"{self.length}",
                "name the axis of the tokens, or make the layout for this length",
            )  # fmt: skip
        return x.index_select(dim, self.positions(rank).to(x.device))


@lru_cache(maxsize=64)
def _of_ranks(layout: Layout) -> tuple[Tensor, ...]:
    """Return the positions of each rank."""
    owners = layout.owner_of(torch.arange(layout.length))
    counts = torch.bincount(owners, minlength=layout.world).tolist()
    parts: tuple[Tensor, ...] = owners.argsort(stable=True).split(counts)
    return parts


@dataclass(frozen=True)
class Contiguous(Layout):
    """Each rank holds one piece of the sequence; the first ranks may hold one more token."""

    def owner_of(self, positions: Tensor) -> Tensor:
        """Divide into pieces."""
        each, more = divmod(self.length, self.world)
        ends = torch.arange(1, self.world + 1) * each
        ends = ends + torch.arange(1, self.world + 1).clamp(max=more)
        return torch.searchsorted(ends, positions, right=True)


@dataclass(frozen=True)
class ZigZag(Layout):
    """Two pieces for each rank, one from each end: the work of a causal rule is balanced.

    >>> [ZigZag(8, 2).positions(rank).tolist() for rank in range(2)]
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """

    def owner_of(self, positions: Tensor) -> Tensor:
        """Number the pieces from the nearer end."""
        pieces = 2 * self.world
        ends = torch.arange(1, pieces + 1) * self.length // pieces
        piece = torch.searchsorted(ends, positions, right=True)
        return torch.minimum(piece, pieces - 1 - piece)


@dataclass(frozen=True)
class Striped(Layout):
    """Blocks of `block` tokens are assigned to the ranks in turn.

    >>> [Striped(7, 2, block=2).positions(rank).tolist() for rank in range(2)]
    [[0, 1, 4, 5], [2, 3, 6]]
    """

    block: int = 1

    def owner_of(self, positions: Tensor) -> Tensor:
        """Assign blocks in turn."""
        return positions // self.block % self.world


@dataclass(frozen=True)
class Dealt(Layout):
    """Tile t of `size` tokens belongs to rank `owners[t]`; see `balanced`.

    >>> [Dealt(5, 2, 2, (0, 1, 0)).positions(rank).tolist() for rank in range(2)]
    [[0, 1, 4], [2, 3]]
    """

    size: int
    owners: tuple[int, ...]

    def owner_of(self, positions: Tensor) -> Tensor:
        """Look up the owner of the tile."""
        return torch.tensor(self.owners, dtype=torch.long)[positions // self.size]

    def __repr__(self) -> str:
        return f"Dealt({self.length}, {self.world}, {self.size}, <{len(self.owners)} tiles>)"


def balanced(rule: Rule, length: int, world: int, size: int | None = None) -> Dealt:
    """Assign tiles of queries so that every rank scores about as many pairs of a rule.

    Tiles are assigned in order of their work, largest first, each to the rank with the least work
    that still has room; the counts of tiles differ by at most one.

    >>> from regard.core.support import Causal
    >>> balanced(Rule(Causal()), 8, 2, size=1).owners
    (0, 1, 1, 0, 0, 1, 1, 0)
    """
    size = size or max(1, min(128, length // (8 * world)), -(-length // TILES))
    if not length:
        return Dealt(length, world, size, ())
    work = work_of_tiles(rule, length, size)
    room = -(-len(work) // world)
    full = len(work) - (room - 1) * world  # this many ranks hold `room` tiles, the others one fewer
    owners, load, held = [0] * len(work), [0.0] * world, [0] * world
    for tile in sorted(range(len(work)), key=lambda t: (-work[t], t)):
        # Once enough ranks hold `room` tiles, the others stop one short.
        most = room if sum(x == room for x in held) < full else room - 1
        rank = min((r for r in range(world) if held[r] < most), key=lambda r: (load[r], r))
        owners[tile] = rank
        load[rank] += work[tile]
        held[rank] += 1
    return Dealt(length, world, size, tuple(owners))


def work_of_tiles(rule: Rule, length: int, size: int) -> list[float]:
    """Count the pairs that each tile of `size` queries may score, in tiles that are not empty."""
    line = tiled(torch.arange(length), size)
    support = rule.support.to("cpu")
    batch, heads = support.extent()
    found = []
    for rows in line.split(max(1, (1 << 20) // (len(line) * batch * heads) + 1)):
        state = tile_states(support, Grid.of(rows, line, batch, heads).shift(rule.offset))
        found += (state != EMPTY).double().mean((0, 1)).sum(1).tolist()
    return [x * size * size for x in found]
