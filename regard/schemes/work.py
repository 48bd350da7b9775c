"""Find which ranks need which keys from the tiles of a rule, before anything is sent.

A tile that a rule leaves empty is neither computed nor sent. Every rank computes this from the rule
and the layouts, with the same result.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from regard.core.rule import Rule
from regard.core.tilemap import EMPTY, FULL, Grid, tile_states, tiled
from regard.schemes.layouts import Layout

# The most positions in a tile, and the most pairs of positions that a function is evaluated at.
TILE = 64
ASKED = 1 << 24
# The most pairs of two ranks that are checked individually to avoid sending unneeded keys.
EXACT = 1 << 22


@dataclass(frozen=True)
class RankWork:
    """What a rule needs from every rank, for queries and keys laid out over ranks.

    `needed[r][s]` are the slots of rank s whose keys the queries of rank r may attend to, and
    `asking[r][s]` the slots of rank r with queries that may attend to keys of rank s; `pairs[r][s]`
    counts the pairs in tiles that are not empty.
    """

    needed: list[list[Tensor]]
    asking: list[list[Tensor]]
    pairs: list[list[int]]

    def pairs_by_rank(self) -> list[int]:
        """Count the pairs that each rank scores, for one head."""
        return [sum(row) for row in self.pairs]

    def rows_sent(self) -> list[int]:
        """Count the keys that each rank sends: one that two ranks need is sent twice."""
        world = len(self.needed)
        return [sum(len(self.needed[r][s]) for r in range(world) if r != s) for s in range(world)]


def work_of(rule: Rule, queries: Layout, keys: Layout) -> RankWork:
    """Compute what every rank needs from every other; cached for the lifetime of the rule.

    >>> from regard.core.support import Causal, Window
    >>> from regard.schemes.layouts import Contiguous
    >>> layout = Contiguous(256, 4)
    >>> work = work_of(Rule(Causal() & Window(16)), layout, layout)
    >>> work.rows_sent(), work.pairs_by_rank()
    ([15, 15, 15, 0], [1792, 2048, 2048, 2048])
    """
    key: Hashable = ("work over ranks", queries, keys, rule.offset)
    return rule.support.memo(key, lambda: _read(rule, queries, keys))


def tile_of(length: int, world: int) -> int:
    """Return how many positions a tile holds, for ranks with this many tokens."""
    return max(1, min(TILE, length // (4 * world)))


def _read(rule: Rule, queries: Layout, keys: Layout) -> RankWork:
    ranks = range(queries.world)
    size = tile_of(max(queries.length, keys.length), queries.world)
    rows = [queries.positions(r) for r in ranks]
    cols = [keys.positions(s) for s in ranks]
    needed: list[list[Tensor]] = []
    asking: list[list[Tensor]] = []
    pairs: list[list[int]] = []
    for i in rows:
        found = [_between(rule, i, j, size) for j in cols]
        needed.append([x[0] for x in found])
        asking.append([x[1] for x in found])
        pairs.append([x[2] for x in found])
    return RankWork(needed, asking, pairs)


def _between(rule: Rule, i: Tensor, j: Tensor, size: int) -> tuple[Tensor, Tensor, int]:
    """Return the keys and queries that some pair needs, and the pairs in tiles that are not empty.

    Where no tile is full, pairs are checked individually if there are not too many, so that only
    needed keys are sent.
    """
    if not len(i) or not len(j):
        return torch.arange(0), torch.arange(0), 0
    state = states(rule, i, j, size).flatten(0, -3)
    some, sure = (state != EMPTY).any(0), (state == FULL).any(0)
    sizes = [torch.full((n,), size) for n in some.shape]
    for counts, x in zip(sizes, (i, j), strict=True):
        counts[-1] = len(x) - (len(counts) - 1) * size
    pairs = int((some * sizes[0][:, None] * sizes[1]).sum())
    keys = _exactly(rule, i, j, some, sure, size, 0)
    queries = _exactly(rule, i, j, some, sure, size, 1)
    return _shared(keys, len(j)), _shared(queries, len(i)), pairs


def _shared(slots: Tensor, count: int) -> Tensor:
    """Return one tensor for all lists of every slot: pairs of ranks grow as their square."""
    return _every(count) if len(slots) == count else slots


@lru_cache(maxsize=64)
def _every(count: int) -> Tensor:
    return torch.arange(count)


def _exactly(
    rule: Rule, i: Tensor, j: Tensor, some: Tensor, sure: Tensor, size: int, over: int
) -> Tensor:
    """Return the slots of keys (over=0) or queries (over=1) that some pair of tiles needs."""
    x = (j, i)[over]
    known, asked = sure.any(over), some.any(over)

    def slots(tiles: Tensor) -> Tensor:
        return tiles.repeat_interleave(size)[: len(x)].nonzero().flatten()

    maybe = asked & ~known
    candidates = slots(maybe)
    others = some[:, maybe].any(1) if over == 0 else some[maybe].any(0)
    beside = others.repeat_interleave(size)[: len((i, j)[over])].nonzero().flatten()
    support = rule.support.to("cpu")
    batch, heads = support.extent()
    if len(candidates) * len(beside) * batch * heads > EXACT or support.functions():
        return slots(asked)
    rows, cols = (beside, candidates) if over == 0 else (candidates, beside)
    b, h = torch.arange(batch).view(-1, 1, 1, 1), torch.arange(heads).view(-1, 1, 1)
    pairs = support.allows(b, h, i[rows].view(-1, 1) + rule.offset, j[cols])
    pairs = pairs.expand(batch, heads, len(rows), len(cols)).flatten(0, 1).any(0)
    found = candidates[pairs.any(over)]
    return torch.cat((slots(known), found)).sort().values


def states(rule: Rule, i: Tensor, j: Tensor, size: int) -> Tensor:
    """Return the state of each tile of queries at i and keys at j, int8 [b, h, t_q, t_k]."""
    support = rule.support.to("cpu")
    if support.functions() and len(i) * len(j) > ASKED:  # every pair would be evaluated: too many
        return torch.ones(1, 1, -(-len(i) // size), -(-len(j) // size), dtype=torch.int8)
    batch, heads = support.extent()
    grid = Grid.of(tiled(i, size), tiled(j, size), batch, heads)
    return tile_states(support, grid.shift(rule.offset))


def state_of(rule: Rule, i: Tensor, j: Tensor) -> int:
    """Return the state of queries at i and keys at j as one tile: EMPTY, PARTIAL or FULL."""

    def look() -> int:
        found = states(rule, i, j, tile_of(max(len(i), len(j)), 1))
        if bool((found == EMPTY).all()):
            return EMPTY
        return FULL if bool((found == FULL).all()) else 1

    first = (len(i), int(i[0]), int(i[-1]), len(j), int(j[0]), int(j[-1]), rule.offset)
    return rule.support.memo(("state over ranks", first), look)
