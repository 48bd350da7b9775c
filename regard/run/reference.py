"""The meaning: plain operations on the whole matrix, for any rule, in float64 if asked.

Every other executor must equal this one: output, lse and every gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.partial import Partial, wide
from regard.run.counting import bytes_of, count
from regard.run.executor import Answer, Executor, Yes
from regard.run.isolation import contained
from regard.run.transforms import Transforms


class Reference(Executor):
    """Write out every score, weigh each row, and sum the values."""

    name = "reference"
    transforms = Transforms.ANY

    def can(self, call: Call) -> Answer:
        """Anything."""
        return Yes()

    def run(self, call: Call) -> Partial:
        """Scores [b, h, n, m] -> weights [b, h, n, m] -> out [b, h, n, e]."""
        return contained(call, _run)

    def weighed(self, call: Call) -> tuple[Partial, Tensor]:
        """Run it, and return the weights [b, h, n, m]."""
        scores, allowed = score_matrix(call)
        count(scores.numel(), call.d + call.e, 4.0 * bytes_of(scores))
        weights, lse = call.rule.weigh.rows(scores, allowed)
        values = expand_heads(call.v, call.h).to(weights.dtype)
        return Partial((weights @ values).to(call.q.dtype), lse), weights


def _run(call: Call) -> Partial:
    scores, allowed = score_matrix(call)
    count(scores.numel(), call.d + call.e, 4.0 * bytes_of(scores) + 2.0 * bytes_of(call.q))
    values = expand_heads(call.v, call.h).to(scores.dtype)
    if call.dropout:
        weights, lse = call.rule.weigh.rows(scores, allowed)
        weights = torch.nn.functional.dropout(weights, call.dropout)
        return Partial((weights @ values).to(call.q.dtype), lse)
    out, lse = call.rule.weigh.whole(scores, allowed, values)
    return Partial(out.to(call.q.dtype), lse)


def score_matrix(call: Call) -> tuple[Tensor, Tensor]:
    """Every score [b, h, n, m] in a wide dtype, and which of them are allowed."""
    dtype = wide(call.q.dtype)
    q, k = call.q.to(dtype), expand_heads(call.k, call.h).to(dtype)
    at = call.at()
    allowed = call.allowed(at)
    scores = call.rule.score.match.between(q, k)
    scores = call.rule.score.bind(q, k)(scores, at._replace(allowed=allowed))
    return scores, allowed


def weight_matrix(call: Call) -> tuple[Tensor, Tensor | None]:
    """Every weight [b, h, n, m], without the sink, and the lse."""
    scores, allowed = score_matrix(call)
    count(scores.numel(), call.d, 2.0 * bytes_of(scores))
    return call.rule.weigh.rows(scores, allowed)
