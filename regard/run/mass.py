"""The weight that queries put on a part of what they may meet, without a matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.call import Call
from regard.core.errors import RuleError, fail
from regard.core.heads import expand_heads
from regard.core.partial import finite, wide
from regard.core.support import Everything, Support, Window
from regard.core.weigh import Softmax
from regard.run.fused import pattern, product, why_not_product
from regard.run.runner import run

# Scores held at a time.
SCORES = 1 << 22


def log_weight(call: Call) -> Tensor:
    """Give the log of all weight before it is shared out [b, h, n], sinks counted; -inf if none."""
    if not isinstance(call.rule.weigh, Softmax):
        fail(
            RuleError, "rule.weigh", repr(call.rule.weigh), "Softmax, whose weights share one sum",
            "survey the named keys instead: regard.survey(..., want=('sets',))",
        )  # fmt: skip
    with torch.no_grad():
        found = run(call, ("lse",)).lse
    assert found is not None
    return found


def log_part(call: Call, part: Support) -> Tensor:
    """Give the log of the weight on the pairs of `part` [b, h, n]; -inf where there is no pair."""
    support = call.rule.support & part
    # What is left to no key is counted in the whole, not in the part.
    alone = call.rule.weigh
    alone = alone.replace(plus_one=False, sink=None) if alone.has_sink else alone
    return log_weight(call.replace(rule=call.rule.replace(support=support, weigh=alone)))


# From so many keys on, pairs that are few are gathered: below, a mask over all of them is quick.
GATHERED = 1024


def gathers(call: Call) -> bool:
    """Whether `log_part_of_keys` and `log_part_of_groups` can take this call, and are worth it."""
    return call.b == 1 and call.m >= GATHERED and not call.placed and not call.rule.tensors()


# Queries that read the same keys without a mask, where a causal rule lets them.
BEFORE = 512


def log_part_of_keys(call: Call, keys: Tensor) -> Tensor:
    """Return `log_part` [1, h, n] of some keys, by their rising indices [s]: only these are read.

    >>> q = torch.randn(1, 2, 6, 4)
    >>> found = log_part_of_keys(Call.of(q, q, q), torch.tensor([1, 4]))
    >>> found.allclose((q @ q.mT / 2)[..., [1, 4]].logsumexp(-1))
    True
    """
    if pattern(call) != "causal" or call.n <= BEFORE:
        return _log_part_of(call, slice(None), keys)
    found = torch.full((1, call.h, call.n), -torch.inf, dtype=wide(call.q.dtype)).to(keys.device)
    free = call.replace(rule=call.rule.replace(support=Everything()))
    for start in range(0, call.n, BEFORE):
        rows = slice(start, min(start + BEFORE, call.n))
        first, last = torch.searchsorted(keys, keys.new_tensor([rows.start, rows.stop])).tolist()
        for some, one in ((keys[:first], free), (keys[first:last], call)):
            if len(some):  # those that stand before these queries need no mask
                part = _log_part_of(one, rows, some)
                found[:, :, rows] = torch.logaddexp(found[:, :, rows], part)
    return found


def _log_part_of(call: Call, rows: slice, keys: Tensor) -> Tensor:
    """Return `log_part` of some keys for some queries."""
    k = call.k[:, :, keys]
    alone = call.replace(q=call.q[:, :, rows], k=k, v=k[..., :1])
    if not isinstance(call.rule.support, Everything) or call.rule.score.steps:
        at = torch.arange(call.n, device=keys.device)[rows]
        alone = alone.replace(k_positions=keys, q_positions=at)
    return log_part(alone, Everything())


def log_part_at(call: Call, distance: int) -> Tensor:
    """Return `log_part` [b, h, n] of the pairs `at_distance`: one of each query, read alone.

    >>> q = torch.randn(1, 2, 6, 4)
    >>> found = log_part_at(Call.of(q, q, q), 1)
    >>> found[0, 0, 0].item(), found[..., 1:].allclose((q[:, :, 1:] * q[:, :, :-1]).sum(-1) / 2)
    (-inf, True)
    """
    alone = call.q_positions is None and call.keys.positions is None
    if not alone or why_not_product(call):
        return log_part(call, at_distance(distance))
    rows = torch.arange(call.n, device=call.q.device)
    j = rows + call.rule.offset - distance
    there, cols = (j >= 0) & (j < call.m), j.clamp(0, max(call.m - 1, 0))
    at = call.at(rows, cols)
    allowed = call.allowed(at._replace(col=cols[:, None], j=cols[:, None]))
    q, k, scale = product(call)
    dtype = wide(call.q.dtype)
    grouped = q.to(dtype).unflatten(1, (call.g, -1))  # [b, g, h / g, n, d]
    scores = torch.linalg.vecdot(grouped, k[:, :, None, cols].to(dtype)).flatten(1, 2) * scale
    met = allowed.expand(*scores.shape, 1)[..., 0] & there
    return torch.where(met, scores, -torch.inf)


def log_part_of_groups(call: Call, of_queries: Tensor, of_keys: Tensor, part: Support) -> Tensor:
    """Return `log_part` [1, h, n] of the pairs of `part` whose query and key are of one group.

    `of_queries` [n] and `of_keys` [m] number the groups; a negative number is of none. Queries and
    keys of a group are gathered, groups of about one size at once, so the work is that of the
    pairs, not of all n x m.

    >>> q = torch.randn(1, 2, 6, 4)
    >>> group = torch.tensor([0, 1, 0, 1, 2, 0])
    >>> found = log_part_of_groups(Call.of(q, q, q), group, group, Everything())
    >>> scores = (q @ q.mT / 2).masked_fill(group[:, None] != group, -torch.inf)
    >>> found.allclose(scores.logsumexp(-1), atol=1e-6)
    True
    """
    device = call.q.device
    found = torch.full((1, call.h, call.n), -torch.inf, dtype=wide(call.q.dtype), device=device)
    groups = torch.arange(max(int(x.max()) for x in (of_queries, of_keys)) + 1)
    sides = []
    for group in (of_queries.cpu(), of_keys.cpu()):
        order = group.argsort(stable=True)
        first = torch.searchsorted(group[order], groups)
        many = torch.searchsorted(group[order], groups, right=True) - first
        sides.append((order, first, many))
    (_, _, queries), (_, _, keys) = sides
    size = torch.where((queries > 0) & (keys > 0), torch.maximum(queries, keys), 0)
    bucket = torch.where(size > 0, torch.ceil(torch.log2(size.clamp(min=1).double())).long(), -1)
    for power in bucket[bucket >= 0].unique().tolist():
        some, step = groups[bucket == power], torch.arange(1 << power)
        rows, cols = (
            torch.where(
                step < many[some, None],
                order[(first[some, None] + step).clamp(max=len(order) - 1)], -1,
            ).to(device)
            for order, first, many in sides
        )  # fmt: skip
        q = call.q[0, :, rows.clamp(min=0)].transpose(0, 1)  # [groups, h, size, d]
        k = call.k[0, :, cols.clamp(min=0)].transpose(0, 1)
        after = torch.where(rows < 0, call.n + step.to(device), rows)  # of no query: behind all
        alone = Call.of(q, k, k[..., :1], call.rule, after, cols)
        lse = log_part(alone, part).to(found.dtype)
        there = rows >= 0
        found[0, :, rows[there]] = lse.transpose(0, 1)[:, there]
    return found


def mass(call: Call, part: Support, whole: Tensor | None = None) -> Tensor:
    """Return the weight [b, h, n] that each query puts on the pairs of `part`.

    Two attentions, over all pairs and over the part, differ in their log-sum-exp by the log of that
    weight. `whole` is `log_weight(call)`, where it is known.

    >>> q = torch.randn(1, 2, 6, 4)
    >>> from regard.core.rule import Rule
    >>> from regard.core.support import Causal, Everything
    >>> call = Call.of(q, q, q, Rule(Causal()))
    >>> mass(call, Everything()).allclose(torch.ones(1, 2, 6))
    True
    """
    whole = log_weight(call) if whole is None else whole
    return torch.exp(log_part(call, part) - finite(whole))


def tile_mass(call: Call, tile: int, lse: Tensor | None = None) -> Tensor:
    """Sum the weights of each tile, [b, h, t_q, t_k], from the log of all weight of each row.

        M_IJ = sum over i in I, j in J of exp(score_ij - lse_i)

    `lse` [b, h, n] is `log_weight(call)`, or what it was a little earlier: then no pass looks for
    tops and sums, and rows of tiles sum to about the queries in them.

    >>> q = torch.randn(1, 1, 6, 4)
    >>> tile_mass(Call.of(q, q, q), 2).sum(-1)[0, 0].round().tolist()
    [2.0, 2.0, 2.0]
    """
    lse = log_weight(call) if lse is None else lse
    dtype = wide(call.q.dtype)
    q, k = call.q.to(dtype), expand_heads(call.k, call.h).to(dtype)
    change, score = call.rule.score.bind(q, k), call.rule.score
    at_once = max(1, SCORES // max(1, call.b * call.h * call.m) // tile) * tile
    rows_of_tiles = []
    for rows in torch.arange(call.n, device=q.device).split(at_once):
        at = call.at(rows)
        allowed = call.allowed(at)
        scores = change(score.match.between(q[:, :, rows], k), at._replace(allowed=allowed))
        weights = call.rule.weigh.weights(scores, allowed, lse[:, :, rows])
        full = pad(weights, (0, -call.m % tile, 0, -len(rows) % tile))
        rows_of_tiles.append(full.unflatten(3, (-1, tile)).sum(4).unflatten(2, (-1, tile)).sum(3))
    return torch.cat(rows_of_tiles, 2)


def at_distance(distance: int) -> Support:
    """The pairs in which the key stands exactly so far before the query; after it, if negative.

    >>> at_distance(1).matrix(3)[0, 0].int().tolist()
    [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    >>> at_distance(-1).matrix(3)[0, 0].int().tolist()
    [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    >>> at_distance(0).matrix(2)[0, 0].int().tolist()
    [[1, 0], [0, 1]]
    """
    far = abs(distance)
    if far == 0:
        return Window(1)
    if distance > 0:
        wide, narrow = Window(far + 1, 1), Window(far, 1)
    else:
        wide, narrow = Window(1, far + 1), Window(1, far)
    return wide & ~narrow


__all__ = [
    "at_distance", "gathers", "log_part", "log_part_at", "log_part_of_groups", "log_part_of_keys",
    "log_weight", "mass", "tile_mass",
]  # fmt: skip
