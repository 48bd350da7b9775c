"""The base class of schemes: executors over sharded keys, which agree before they send."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ShapeError, fail
from regard.core.partial import Partial, merge, nothing, wide
from regard.core.rule import Rule
from regard.core.support import Everything
from regard.core.tilemap import EMPTY, FULL
from regard.run.executor import LAUNCH, Answer, Cost, Executor, No, Yes
from regard.run.plan import densified
from regard.run.reference import weight_matrix
from regard.run.runner import partial_of
from regard.run.transforms import Transforms
from regard.schemes.handshake import Meant, shake
from regard.schemes.layouts import Layout
from regard.schemes.sharded_keys import ShardedKeys
from regard.schemes.work import RankWork, state_of, work_of

# Bytes of memory moved in the time that a link takes for one.
LINK = 16.0
# The most runs of consecutive positions that are attended to separately.
RUNS = 4


class Scheme(Executor):
    """A way to run one call over the ranks of a mesh; every rank runs it."""

    reads: ClassVar[frozenset[str]] = frozenset({ShardedKeys.form})
    transforms = Transforms.NONE
    # Keys are gathered once the call runs: a plan sends nothing.
    weighs: ClassVar[bool] = True
    # Whether every rank has its own queries, or all have the same.
    same_queries: ClassVar[bool] = False
    # Whether a query attends to its keys in several parts.
    splits_rows: ClassVar[bool] = True

    def can(self, call: Call) -> Answer:
        """Any rule that can be cut by positions."""
        keys = call.keys
        if not isinstance(keys, ShardedKeys):
            return No(f"reads sharded keys, not {keys.form}")
        if keys.scheme is not None and keys.scheme != self.name:
            return No(f"the keys ask for {keys.scheme}")
        if call.dropout:
            return No("drops no weights: each rank would drop others than one process does")
        if self.same_queries != (keys.queries is None):
            return No(
                "every rank has queries of its own" if self.same_queries
                else "all ranks have the same queries, whose outputs are merged by tree"
            )  # fmt: skip
        score = call.rule.score
        own = next((x for x in score.steps if x.by_token), None)
        if own is not None:
            return No(f"{own} has an entry for each token of a call, and a rank holds only some")
        if self.splits_rows and score.needs_row:
            return No(f"{score} needs whole rows of scores")
        reason = self.refuses(call, keys)
        return No(reason) if reason else Yes(self.note(call, keys))

    def refuses(self, call: Call, keys: ShardedKeys) -> str:
        """Return why it cannot run a call, or None."""
        return ""

    @abstractmethod
    def bytes_sent(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Return the bytes that each rank sends for the output of a call: the formula."""

    def pairs(self, call: Call, keys: ShardedKeys) -> list[float]:
        """Return the pairs of all heads that each rank scores, in tiles that are not empty."""
        return [float(x) * call.b * call.h for x in work(call, keys).pairs_by_rank()]

    def note(self, call: Call, keys: ShardedKeys) -> str:
        """Describe how much each rank computes and sends."""
        sent, pairs = self.bytes_sent(call, keys), self.pairs(call, keys)
        return (
            f"{keys.peers.world} ranks send {min(sent):,} to {max(sent):,} bytes and score "
            f"{min(pairs):,.0f} to {max(pairs):,.0f} pairs"
        )

    # The share of sending that does not overlap with computing.
    exposed: ClassVar[float] = 1.0

    def rounds(self, keys: ShardedKeys) -> int:
        """Count the messages that wait for another."""
        return 1

    def held(self, call: Call, keys: ShardedKeys) -> float:
        """Count the bytes held besides a rank's own tensors."""
        return float(max(self.bytes_sent(call, keys)))

    def cost(self, call: Call) -> Cost:
        """Count the work of the rank with the most: the others wait for it."""
        keys = call.keys
        assert isinstance(keys, ShardedKeys)
        sent, pairs = self.bytes_sent(call, keys), self.pairs(call, keys)
        moved = self.exposed * LINK * max(sent) + keys.nbytes
        flops = 2.0 * max(pairs) * (call.d + call.e) + LAUNCH * self.rounds(keys)
        return Cost(flops, moved, self.held(call, keys))

    def run(self, call: Call) -> Partial:
        """Agree with all ranks, then run."""
        keys = call.keys
        assert isinstance(keys, ShardedKeys)
        if keys.queries is not None:
            here = len(keys.queries.positions(keys.peers.rank))
            if call.n != here:
                fail(
                    ShapeError, "q", f"{call.n} queries on rank {keys.peers.rank}",
                    f"{here}, as {keys.queries} gives it",
                    "take the queries of this rank: layout.take(q, rank, dim=2)",
                )  # fmt: skip
        real = "" if keys.real is None else f", {int(keys.real.sum())} real"
        lengths = f"{keys.layout}{'' if keys.queries == keys.layout else f', {keys.queries}'}{real}"
        shake(Meant.by(call, keys.peers, self.name, lengths), keys.peers, call.q.device)
        out, lse = self.spread(call, keys)
        return Partial(out.to(call.q.dtype), lse)

    def weighed(self, call: Call) -> tuple[Partial, Tensor]:
        """Run a call, and return the weights of this rank's queries over all keys."""
        part = self.run(call)
        return part, weight_matrix(densified(call))[0]

    @abstractmethod
    def spread(self, call: Call, keys: ShardedKeys) -> Partial:
        """Run a call that all ranks agree on; sums are in at least float32."""


def work(call: Call, keys: ShardedKeys) -> RankWork:
    """Return what each rank needs from every other in a call."""
    return work_of(call.rule, queries_of(keys), keys.layout)


def queries_of(keys: ShardedKeys) -> Layout:
    """Return the layout of the queries."""
    assert keys.queries is not None
    return keys.queries


def partial_over(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, real: Tensor | None = None
) -> Partial:
    """Attend from queries at positions i [n] to some keys at positions j [c], both ascending.

    q [b, h, n, d], k [b, g, c, d], v [b, g, c, e]; `real` bool [b, length] is false at padding. The
    output is in at least float32, so that parts of half precision merge without loss. Runs of
    consecutive positions that a rule leaves empty are skipped, and plain ones need no mask.
    """
    if not len(i) or not len(j):
        # Nothing is attended to, but others still wait for gradients.
        joined = sum(x[:, :, :0].sum() for x in (q, k, v))
        empty = q.new_zeros(*q.shape[:3], v.shape[3], dtype=wide(q.dtype)) + joined
        return nothing(empty, sums=rule.weigh.sums)._replace(out=empty)
    made = []
    for row, cols in blocks_of(rule, i, j):
        parts = [
            _block(rule, q[:, :, row], k[:, :, col], v[:, :, col], i[row], j[col], real)
            for col in cols
        ]
        some = [x for x in parts if x is not None]
        empty = q.new_zeros(*q[:, :, row].shape[:3], v.shape[3], dtype=wide(q.dtype))
        made.append(merge(*some) if some else nothing(empty, sums=rule.weigh.sums))
    if len(made) == 1:
        return made[0]
    lses = [x.lse for x in made if x.lse is not None]
    return Partial(torch.cat([x.out for x in made], 2), torch.cat(lses, 2) if lses else None)


def blocks_of(rule: Rule, i: Tensor, j: Tensor) -> list[tuple[slice, list[slice]]]:
    """Cut positions of queries into runs, and those of keys for each, where these are few."""
    rows, cols = _runs(i), _runs(j)
    if len(rows) * len(cols) > RUNS:
        return [(slice(0, len(i)), [slice(0, len(j))])]
    return [(row, [x for col in cols for x in _cut(rule, i[row], j, col)]) for row in rows]


def _cut(rule: Rule, i: Tensor, j: Tensor, col: slice) -> list[slice]:
    """Cut a run of keys into those before, within and after a run of queries.

    Where all of the first are attended to and none of the last, as under a causal rule, kernels
    need no mask for any of the three.
    """
    at = j[col]
    low = int(torch.searchsorted(at, int(i[0]) + rule.offset))
    high = int(torch.searchsorted(at, int(i[-1]) + rule.offset, right=True))
    if low == high or (low == 0 and high == len(at)):
        return [col]
    if low and state_of(rule, i, at[:low]) != FULL:
        return [col]
    if high < len(at) and state_of(rule, i, at[high:]) != EMPTY:
        return [col]
    cuts = [0, low, high, len(at)]
    return [slice(col.start + a, col.start + b) for a, b in itertools.pairwise(cuts) if b > a]


def _runs(x: Tensor) -> list[slice]:
    """Cut sorted positions into runs of consecutive ones."""
    ends = ((x.diff() != 1).nonzero().flatten() + 1).tolist()
    cuts = [0, *ends, len(x)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def _block(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, real: Tensor | None
) -> Partial | None:
    """Attend to one block; return None if it is empty."""
    call = block_call(rule, q, k, v, i, j, real)
    if call is None:
        return None
    part = partial_of(call)
    return Partial(part.out.to(wide(q.dtype)), part.lse)


def block_call(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, real: Tensor | None
) -> Call | None:
    """Build the call of one block, without positions where they do not matter; None if empty."""
    device, plain = q.device, real is None and not any(s.asks_positions for s in rule.score.steps)
    in_a_row = int(i[-1]) - int(i[0]) == len(i) - 1 and int(j[-1]) - int(j[0]) == len(j) - 1
    call = None
    if in_a_row:
        state = state_of(rule, i, j)
        later = int(i[0]) + rule.offset - int(j[0])
        if state == EMPTY:
            return None
        if plain and state == FULL:
            call = Call.of(q, k, v, rule.replace(support=Everything(), offset=0))
        elif plain and later >= 0 and rule.support.anchor() == 0:
            call = Call.of(q, k, v, rule.replace(offset=later))
        elif plain:
            first = int(i[0]) + rule.offset, int(j[0])
            support = rule.support.memo(
                ("counted from", *first), lambda: rule.support.counted_from(*first)
            )
            if support is not None:
                call = Call.of(q, k, v, rule.replace(support=support, offset=0))
    if call is None:
        at = j.to(device)
        if real is not None:
            at = torch.where(real.to(device)[:, at], at, -1)
        call = Call.of(q, k, v, rule, i.to(device), at)
    return call


def row_terms(
    d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor | None
) -> Tensor | None:
    """Return d_row [b, h, n] of `pulled_back`; None if rows are not normalized."""
    if lse is None:
        return None
    d_row = (d_out.to(out.dtype) * out).sum(-1)
    return d_row if d_lse is None else d_row - torch.where(lse == -torch.inf, 0.0, d_lse)
