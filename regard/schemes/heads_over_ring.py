"""USP: heads over some ranks and a ring over the others, two mesh dimensions for one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regard.core.call import Call
from regard.core.keys import Dense
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.schemes.head_split import (
    HeadSplit,
    exchanged_bytes,
    key_heads_held,
    shares,
    through_heads,
)
from regard.schemes.layouts import Layout
from regard.schemes.messages import SomePeers
from regard.schemes.ring_attention import RingAttention, learns_unseen_by
from regard.schemes.scheme import queries_of
from regard.schemes.sharded_keys import ShardedKeys
from regard.schemes.work import RankWork, work_of


@dataclass(frozen=True)
class ShardGroups(Layout):
    """A layout whose ranks are groups of `size` consecutive ranks of another layout.

    >>> from regard.schemes.layouts import ZigZag
    >>> ShardGroups.of_ranks(ZigZag(8, 4), 2).positions(1).tolist()
    [2, 3, 4, 5]
    """

    of: Layout
    size: int

    @staticmethod
    def of_ranks(layout: Layout, size: int) -> ShardGroups:
        """Group the ranks of a layout."""
        return ShardGroups(layout.length, layout.world // size, layout, size)

    def owner_of(self, positions: Tensor) -> Tensor:
        """Return the group of the rank that holds each position."""
        return self.of.owner_of(positions) // self.size


@dataclass(frozen=True)
class Within(Layout):
    """The tokens of one group of ranks, renumbered: which of them each rank of the group holds.

    >>> from regard.schemes.layouts import ZigZag
    >>> [Within.group(ZigZag(8, 4), 2, 1).positions(rank).tolist() for rank in range(2)]
    [[0, 3], [1, 2]]
    """

    groups: ShardGroups
    number: int

    @staticmethod
    def group(layout: Layout, size: int, number: int) -> Within:
        """Return the layout of one group."""
        groups = ShardGroups.of_ranks(layout, size)
        return Within(len(groups.positions(number)), size, groups, number)

    def owner_of(self, positions: Tensor) -> Tensor:
        """Return them from the layout of all ranks."""
        there = self.groups.positions(self.number)[positions]
        return self.groups.of.owner_of(there) % self.world


class HeadsOverRing(HeadSplit):
    """Adjacent ranks exchange tokens for heads, and ranks with the same heads form rings (USP).

    Groups of U of the `world` ranks share the heads of the tokens of a group; the ring has world /
    U steps, and its messages are those of a ring of that many ranks, with a share of the heads. U
    is the largest proper divisor of `world` that divides the key heads, or the query heads.
    """

    name = "heads_ring"
    splits_rows = True
    exposed: ClassVar[float] = 0.75

    def refuses(self, call: Call, keys: ShardedKeys) -> str:
        """Return why it cannot run, as a ring."""
        return learns_unseen_by(call)

    def pairs(self, call: Call, keys: ShardedKeys) -> list[float]:
        """Count the pairs of the tokens of a group, for the heads of a rank."""
        size = across(call, keys.peers.world)
        own = shares(call.h, size)
        found = [self._work(call, keys, size, heads).pairs_by_rank() for heads in own]
        groups = range(keys.peers.world // size)
        return [
            float(found[place][group] * len(heads)) * call.b
            for group in groups for place, heads in enumerate(own)
        ]  # fmt: skip

    def bytes_sent(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Count tokens for heads and back within a group, and keys to the groups that need them."""
        size, queries, sent = across(call, keys.peers.world), queries_of(keys), []
        number = call.b * (call.d + call.e) * call.q.element_size()
        own = shares(call.h, size)
        rows = [self._work(call, keys, size, heads).rows_sent() for heads in own]
        kept, asking = keys.layout.counts(), queries.counts()
        for group in range(keys.peers.world // size):
            some = slice(group * size, (group + 1) * size)
            swapped = exchanged_bytes(call, kept[some], asking[some])
            sent += [
                swapped[place] + rows[place][group] * key_heads_held(heads, call) * number
                for place, heads in enumerate(own)
            ]
        return sent

    def rounds(self, keys: ShardedKeys) -> int:
        """Count the exchange there, the steps of the ring, and the exchange back."""
        return keys.peers.world // 2 + 2

    def held(self, call: Call, keys: ShardedKeys) -> float:
        """Count two blocks, as in a ring."""
        return 2.0 * keys.nbytes

    def spread(self, call: Call, keys: ShardedKeys) -> Partial:
        """Exchange within the group, pass keys among ranks with the same heads, exchange back."""
        peers, queries = keys.peers, queries_of(keys)
        size = across(call, peers.world)
        group, place = divmod(peers.rank, size)
        near = SomePeers(peers, range(group * size, (group + 1) * size))
        far = SomePeers(peers, range(place, peers.world, size))
        of_keys, of_queries = (ShardGroups.of_ranks(x, size) for x in (keys.layout, queries))

        def attend(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Partial:
            inner = ShardedKeys(Dense(k, v), far, of_keys, of_queries, keys.real)
            part = RingAttention().spread(Call(q, inner, rule), inner)
            return Partial(part.out.to(q.dtype), part.lse)

        within = ShardedKeys(
            keys.own, near, Within.group(keys.layout, size, group),
            Within.group(queries, size, group),
        )  # fmt: skip
        return through_heads(call, within, attend)

    def _work(self, call: Call, keys: ShardedKeys, size: int, heads: list[int]) -> RankWork:
        """Return what groups need from each other for some heads."""
        queries, kept = (ShardGroups.of_ranks(x, size) for x in (queries_of(keys), keys.layout))
        apart = heads and len(heads) < call.h and call.rule.support.extent()[1] > 1
        return work_of(call.rule.take_heads(heads) if apart else call.rule, queries, kept)


def across(call: Call, world: int) -> int:
    """Return how many ranks share the heads of a group's tokens.

    >>> x = torch.empty(1, 8, 4, 2)
    >>> [across(Call.of(x, x[:, :g], x[:, :g]), 8) for g in (8, 2, 1)], across(Call.of(x, x, x), 3)
    ([4, 2, 4], 1)
    """
    parts = [u for u in range(world - 1, 0, -1) if world % u == 0]
    for heads in (call.g, call.h):
        found = next((u for u in parts if u > 1 and heads % u == 0), None)
        if found is not None:
            return found
    return 1
