"""The matrix of attention weights, for small inputs only."""

from __future__ import annotations

from torch import Tensor

from regard.core.call import Call
from regard.run.runner import LIMIT, need_room, run


def closed_weights(call: Call, asked_by: str, limit: int = LIMIT) -> Tensor:
    """Return the weights [b, h, n, m], sinks included; raise if they would be too large.

    >>> import torch
    >>> q = torch.randn(1, 2, 3, 8)
    >>> closed_weights(Call.of(q, q, q), "me").sum(-1).allclose(torch.ones(1, 2, 3))
    True
    """
    need_room(call, asked_by, limit)
    found = run(call, ("weights",), "reference").weights
    assert found is not None
    return found
