"""How few dimensions a head's queries and keys need: attention in a subspace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.heads import expand_heads
from regard.models.site import Site
from regard.models.stage import Stage


def subspace(q: Tensor, k: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Bases [d, rank] of the directions of queries and of keys that carry most of the scores.

    q [n, d] and k [m, d] are samples of one head. The directions are those that the largest
    singular parts of q k^T use, found from two d x d factors.
    """
    if not 1 <= rank <= q.shape[1]:
        fail(ValueRangeError, "rank", rank, f"1 to {q.shape[1]}", "keep some dimensions")
    left, right = torch.linalg.qr(q.double()).R, torch.linalg.qr(k.double()).R
    u, _, vt = torch.linalg.svd(left @ right.T)
    bases = [torch.linalg.qr(x).Q for x in (left.T @ u[:, :rank], right.T @ vt[:rank].T)]
    return bases[0], bases[1]


class Compressed(Stage):
    """Attend with some heads' queries and keys projected to a subspace.

    `bases[site, head]` is what `subspace` gives. With as many dimensions as the head has, nothing
    changes.
    """

    def __init__(
        self, bases: dict[tuple[Site, int], tuple[Tensor, Tensor]], where: Any = None
    ) -> None:
        super().__init__(where)
        self.bases = bases

    def before(self, call: Call) -> Call:
        """Project: keys by query head, so grouped keys are given to each of theirs."""
        chosen = {head: x for (site, head), x in self.bases.items() if site == call.site}
        if not chosen:
            return call
        q, k = call.q.clone(), expand_heads(call.k, call.h).clone()
        for head, (a, b) in chosen.items():
            a, b = a.to(q.dtype), b.to(k.dtype)
            q[:, head] = q[:, head] @ a @ a.T
            k[:, head] = k[:, head] @ b @ b.T
        return call.replace(q=q, k=k, v=expand_heads(call.v, call.h))
