"""Split heads over ranks: every rank attends for some heads over the whole sequence."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import gather_heads, key_heads_of
from regard.core.method import method
from regard.core.partial import Partial, wide
from regard.run.runner import partial_of
from regard.schemes.messages import exchange
from regard.schemes.scheme import Scheme, queries_of
from regard.schemes.sharded import Sharded


def shares(heads: int, world: int) -> list[list[int]]:
    """Return the query heads of each rank: in a row, give or take one equally many.

    >>> shares(5, 3), shares(2, 3)
    ([[0, 1], [2, 3], [4]], [[0], [1], []])
    """
    each, more = divmod(heads, world)
    starts = [r * each + min(r, more) for r in range(world + 1)]
    return [list(range(a, b)) for a, b in itertools.pairwise(starts)]


@method("unified_token_mixing_dist_mha", call="regard.attend(q, keys, rule=rule, executor='heads')")
class HeadSplit(Scheme):
    """Exchange tokens for heads, attend to the whole sequence, and exchange back (Ulysses).

    Heads need not divide by the ranks: some hold one more, or none. Ranks that share a key head
    each get it. What is sent does not depend on the rule.
    """

    name = "heads"
    splits_rows = False

    def pairs(self, call: Call, keys: Sharded) -> list[float]:
        """All pairs of the heads of a rank: nobody is spared by a rule, and nobody has more."""
        from regard.schemes.scheme import work

        total = sum(work(call, keys).pairs_by_rank())
        return [float(total * len(own)) * call.b for own in shares(call.h, keys.peers.world)]

    def bytes_sent(self, call: Call, keys: Sharded) -> list[int]:
        """Queries, keys and values of the heads of others, and their outputs with the lse."""
        own, size, world = shares(call.h, keys.peers.world), call.q.element_size(), keys.peers.world
        key_heads = [len(_key_heads(heads, call)) for heads in own]
        kept, queries = keys.layout.counts(), queries_of(keys).counts()
        lse = 0 if call.rule.weigh.sums else wide(call.q.dtype).itemsize
        sent = []
        for r in range(world):
            there = [s for s in range(world) if s != r]
            out = sum(queries[s] for s in there) * len(own[r]) * (call.e * size + lse)
            q = sum(len(own[s]) for s in there) * queries[r] * call.d * size
            kv = sum(key_heads[s] for s in there) * kept[r] * (call.d + call.e) * size
            sent.append(call.b * (out + q + kv))
        return sent

    def rounds(self, keys: Sharded) -> int:
        """There and back."""
        return 2

    def spread(self, call: Call, keys: Sharded) -> Partial:
        """Exchange, attend, exchange back."""
        peers, rule, own = keys.peers, call.rule, keys.own.dense()
        heads = shares(call.h, peers.world)
        key_heads = [_key_heads(x, call) for x in heads]
        queries = queries_of(keys)
        q = _by_heads(call.q, heads, queries.counts(), keys, "queries")
        k = _by_heads(own.k, key_heads, keys.layout.counts(), keys, "keys")
        v = _by_heads(own.v, key_heads, keys.layout.counts(), keys, "values")
        rows = _order(queries, peers.world)
        if heads[peers.rank]:
            cols = _order(keys.layout, peers.world).to(k.device)
            q, k, v = q[:, :, rows.to(q.device)], k[:, :, cols], v[:, :, cols]
            # A key head for each query head, where these do not share them equally.
            of_key = [
                key_heads[peers.rank].index(x) for x in _key_head_of_each(heads, call, peers.rank)
            ]
            if not _equal(of_key):
                k, v = gather_heads(k, of_key), gather_heads(v, of_key)
            some = rule if len(heads[peers.rank]) == call.h else rule.take_heads(heads[peers.rank])
            at = None if keys.real is None else keys.positions
            part = partial_of(
                Call.of(q, k, v, some, k_positions=None if at is None else at.to(q.device))
            )
        else:
            empty = call.q.new_zeros(call.b, 0, queries.length, call.e)
            part = Partial(empty, empty[..., 0].to(wide(empty.dtype)))
            # Gradients of those who sent nothing here are zeros, and must be on their way as well.
            part = Partial(part.out + 0 * (q.sum() + k.sum() + v.sum()), part.lse)
        out = _by_tokens(part.out, heads, rows, keys, "outputs")
        if rule.weigh.sums or part.lse is None:
            return Partial(out, None)
        lse = part.lse[..., None]
        return Partial(out, _by_tokens(lse, heads, rows, keys, "log-sum-exps")[..., 0])


def _key_heads(heads: list[int], call: Call) -> list[int]:
    return sorted(set(key_heads_of(heads, call.h, call.g)))


def _key_head_of_each(heads: list[list[int]], call: Call, rank: int) -> list[int]:
    return key_heads_of(heads[rank], call.h, call.g)


def _equal(of_key: list[int]) -> bool:
    """Whether query heads in a row share key heads in a row, equally many each."""
    g = max(of_key) + 1
    return len(of_key) % g == 0 and of_key == key_heads_of(range(len(of_key)), len(of_key), g)


def _order(layout: object, world: int) -> Tensor:
    """Return the order that brings tokens of rank 0, 1, ... into that of their positions."""
    at: Tensor = torch.cat([layout.positions(rank) for rank in range(world)])  # type: ignore[attr-defined]
    return at.argsort()


def _by_heads(
    x: Tensor, heads: list[list[int]], counts: tuple[int, ...], keys: Sharded, what: str
) -> Tensor:
    """Send x [b, h, own tokens, d] by heads: [b, own heads, all tokens by rank, d]."""
    peers, (b, _, n, d) = keys.peers, x.shape
    sent = torch.cat(
        [gather_heads(x, own).flatten() if own else x[:, :0].flatten() for own in heads]
    )
    outgoing = tuple(b * len(own) * n * d for own in heads)
    mine = len(heads[peers.rank])
    incoming = tuple(b * mine * c * d for c in counts)
    got = exchange(sent, peers, outgoing, incoming, f"sending {what} by heads").split(incoming)
    return torch.cat([y.view(b, mine, c, d) for y, c in zip(got, counts, strict=True)], 2)


def _by_tokens(
    x: Tensor, heads: list[list[int]], order: Tensor, keys: Sharded, what: str
) -> Tensor:
    """Send x [b, own heads, all tokens in order, d] back by tokens: [b, h, own tokens, d]."""
    peers, (b, mine, _, d) = keys.peers, x.shape
    queries = queries_of(keys)
    at = [queries.positions(rank).to(x.device) for rank in range(peers.world)]
    sent = torch.cat([x[:, :, rows].flatten() for rows in at])
    outgoing = tuple(b * mine * len(rows) * d for rows in at)
    n = len(at[peers.rank])
    incoming = tuple(b * len(own) * n * d for own in heads)
    got = exchange(sent, peers, outgoing, incoming, f"sending {what} back").split(incoming)
    return torch.cat([y.view(b, len(own), n, d) for y, own in zip(got, heads, strict=True)], 1)


__all__ = ["HeadSplit", "shares"]
