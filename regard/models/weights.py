"""The matrix of weights, for tiny inputs only."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RegardError, fail

LIMIT = 64 * 2**20


class TooLargeError(RegardError):
    """The matrix of weights would take more memory than it may."""


def closed_weights(call: Call, asked_by: str, limit: int = LIMIT) -> Tensor:
    """Give the weights [b, h, n, m], sinks counted, or say what they would cost.

    >>> q = torch.randn(1, 2, 3, 8)
    >>> closed_weights(Call(q, q, q), "me").sum(-1).allclose(torch.ones(1, 2, 3))
    True
    """
    size = 4 * call.b * call.h * call.n * call.m
    if size > limit:
        fail(
            TooLargeError,
            asked_by,
            f"weights of [{call.b}, {call.h}, {call.n}, {call.m}], {size / 2**20:.0f} MiB a site",
            f"at most {limit / 2**20:.0f} MiB",
            "pass fewer tokens, or want survey statistics, which take memory linear in them",
        )
    from regard.core.partial import Partial, finite
    from regard.run.reference import weight_matrix

    weights, lse = weight_matrix(call)
    if lse is None or not call.rule.weigh.closes:
        return weights
    closed = call.rule.weigh.close(Partial(weights.new_zeros(*lse.shape, 1), lse)).lse
    assert closed is not None
    return weights * torch.exp(lse - finite(closed))[..., None]
