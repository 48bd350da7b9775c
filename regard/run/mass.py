"""The weight that queries put on a part of what they may meet, without a matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.call import Call
from regard.core.errors import RuleError, fail
from regard.core.heads import expand_heads
from regard.core.partial import finite, wide
from regard.core.support import Support, Window
from regard.core.weigh import Softmax
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


__all__ = ["at_distance", "log_part", "log_weight", "mass", "tile_mass"]
