"""Ulysses: every rank attends for some heads over the whole sequence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import gather_heads, key_heads_of
from regard.core.method import method
from regard.core.partial import Partial, wide
from regard.core.rule import Rule
from regard.run.runner import partial_of
from regard.schemes.layouts import Layout
from regard.schemes.messages import exchange
from regard.schemes.scheme import Scheme, queries_of, work
from regard.schemes.sharded_keys import ShardedKeys


def shares(heads: int, world: int) -> list[list[int]]:
    """Return the query heads of each rank: consecutive, with counts that differ by at most one.

    >>> shares(5, 3), shares(2, 3)
    ([[0, 1], [2, 3], [4]], [[0], [1], []])
    """
    each, more = divmod(heads, world)
    starts = [r * each + min(r, more) for r in range(world + 1)]
    return [list(range(a, b)) for a, b in itertools.pairwise(starts)]


@method("unified_token_mixing_dist_mha", call="regard.attend(q, keys, rule=rule, executor='heads')")
class HeadSplit(Scheme):
    """Exchange tokens for heads, attend to the whole sequence, and exchange back (Ulysses).

    The number of heads need not be a multiple of the ranks: some hold one more, or none. Ranks that
    share a key head each get it. What is sent does not depend on the rule.
    """

    name = "heads"
    splits_rows = False

    def pairs(self, call: Call, keys: ShardedKeys) -> list[float]:
        """Count the pairs of the heads of a rank: they do not depend on the layout."""
        total = sum(work(call, keys).pairs_by_rank())
        return [float(total * len(own)) * call.b for own in shares(call.h, keys.peers.world)]

    def bytes_sent(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Count queries, keys and values for the heads of others, and outputs with their lse."""
        return exchanged_bytes(call, keys.layout.counts(), queries_of(keys).counts())

    def rounds(self, keys: ShardedKeys) -> int:
        """Count two: there and back."""
        return 2

    def spread(self, call: Call, keys: ShardedKeys) -> Partial:
        """Exchange, attend, exchange back."""
        at = keys.positions
        at = None if at is None else at.to(call.q.device)

        def attend(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Partial:
            return partial_of(Call.of(q, k, v, rule, k_positions=at))

        return through_heads(call, keys, attend)


def through_heads(
    call: Call, keys: ShardedKeys, attend: Callable[[Tensor, Tensor, Tensor, Rule], Partial]
) -> Partial:
    """Exchange tokens for heads, `attend` for those of this rank, and exchange back.

    `attend` is given q [b, own heads, n, d], k and v of the tokens of all ranks in order, and the
    rule of these heads.
    """
    peers, rule, own = keys.peers, call.rule, keys.own.dense()
    heads = shares(call.h, peers.world)
    key_heads = [key_heads_for(x, call) for x in heads]
    queries, mine = queries_of(keys), heads[peers.rank]
    q, k, v = _by_heads(
        keys, (call.q, heads, queries), (own.k, key_heads, keys.layout),
        (own.v, key_heads, keys.layout),
    )  # fmt: skip
    if mine:
        # A key head for each query head, where these do not share them equally.
        of_key = [key_heads[peers.rank].index(x) for x in key_heads_of(mine, call.h, call.g)]
        if not _equal(of_key):
            k, v = gather_heads(k, of_key), gather_heads(v, of_key)
        part = attend(q, k, v, rule if len(mine) == call.h else rule.take_heads(mine))
    else:
        # Ranks that sent nothing here still wait for gradients.
        empty = q.new_zeros(call.b, 0, queries.length, call.e) + 0 * (q.sum() + v.sum())
        part = Partial(empty, None if rule.weigh.sums else empty[..., 0].to(wide(q.dtype)))
    return _by_tokens(keys, heads, part)


def exchanged_bytes(call: Call, kept: Sequence[int], queries: Sequence[int]) -> list[int]:
    """Count the bytes that each rank sends, given the number of keys and queries of each."""
    world, size = len(kept), call.q.element_size()
    own = shares(call.h, world)
    key_heads = [len(key_heads_for(heads, call)) for heads in own]
    lse = 0 if call.rule.weigh.sums else wide(call.q.dtype).itemsize
    sent = []
    for r in range(world):
        there = [s for s in range(world) if s != r]
        out = sum(queries[s] for s in there) * len(own[r]) * (call.e * size + lse)
        q = sum(len(own[s]) for s in there) * queries[r] * call.d * size
        kv = sum(key_heads[s] for s in there) * kept[r] * (call.d + call.e) * size
        sent.append(call.b * (out + q + kv))
    return sent


def key_heads_for(heads: list[int], call: Call) -> list[int]:
    """Return the key heads that some query heads read, in ascending order."""
    return sorted(set(key_heads_of(heads, call.h, call.g)))


def key_heads_held(heads: list[int], call: Call) -> int:
    """Count the key heads of a rank: one per query head, where heads share them unequally."""
    few = key_heads_for(heads, call)
    of_key = [few.index(x) for x in key_heads_of(heads, call.h, call.g)]
    return 0 if not heads else len(few) if _equal(of_key) else len(of_key)


def _equal(of_key: list[int]) -> bool:
    """Return whether consecutive query heads share consecutive key heads, equally many each."""
    g = max(of_key) + 1
    return len(of_key) % g == 0 and of_key == key_heads_of(range(len(of_key)), len(of_key), g)


def _by_heads(keys: ShardedKeys, *xs: tuple[Tensor, list[list[int]], Layout]) -> tuple[Tensor, ...]:
    """Send each x [b, h, own tokens, d] by heads: [b, own heads, all tokens in order, d]."""
    peers, sent, plans = keys.peers, [], []
    for x, heads, layout in xs:
        b, _, n, d = x.shape
        parts = [gather_heads(x, own) if own else x[:, :0] for own in heads]
        sent.append(torch.cat([part.flatten() for part in parts]))
        outgoing = tuple(b * len(own) * n * d for own in heads)
        each = b * len(heads[peers.rank]) * d
        plans.append((outgoing, tuple(each * c for c in layout.counts())))
    got = exchange(peers, tuple(plans), "sending tokens by heads", *sent)
    found = []
    for y, (x, heads, layout), (_, incoming) in zip(got, xs, plans, strict=True):
        shape, d = (x.shape[0], len(heads[peers.rank])), x.shape[3]
        parts = [
            part.view(*shape, c, d)
            for part, c in zip(y.split(incoming), layout.counts(), strict=True)
        ]
        order = torch.cat([layout.positions(rank) for rank in range(peers.world)]).argsort()
        found.append(torch.cat(parts, 2)[:, :, order.to(x.device)])
    return tuple(found)


def _by_tokens(keys: ShardedKeys, heads: list[list[int]], part: Partial) -> Partial:
    """Send (out, lse) of [b, own heads, all tokens in order] back: [b, h, own tokens]."""
    peers, queries = keys.peers, queries_of(keys)
    xs = [part.out] if part.lse is None else [part.out, part.lse[..., None]]
    at = [queries.positions(rank).to(part.out.device) for rank in range(peers.world)]
    n, (b, mine) = len(at[peers.rank]), part.out.shape[:2]
    sent = [torch.cat([x[:, :, rows].flatten() for rows in at]) for x in xs]
    plans = [
        (
            tuple(b * mine * len(rows) * x.shape[3] for rows in at),
            tuple(b * len(own) * n * x.shape[3] for own in heads),
        )
        for x in xs
    ]
    got = exchange(peers, tuple(plans), "sending outputs back", *sent)
    found = [
        torch.cat([
            y.view(b, len(own), n, x.shape[3])
            for y, own in zip(flat.split(incoming), heads, strict=True)
        ], 1)
        for flat, x, (_, incoming) in zip(got, xs, plans, strict=True)
    ]  # fmt: skip
    return Partial(found[0], found[1][..., 0] if len(found) > 1 else None)
