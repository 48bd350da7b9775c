"""Scores of keys, shared by policies that evict and policies that select."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from regard.models.weights import closed_weights
from regard.policies.base import Step
from regard.run.survey import survey

# Weights that may be held at once; above this a survey computes them in blocks.
FEW = 1 << 22


def received(step: Step, last: int | None = None) -> Tensor:
    """Return the weight each key receives from the last queries (all by default), [b, h, m].

    Queries at padding on the left, as in generate, do not count: they come before the last ones,
    and attend to no key.
    """
    if step.weights is not None:
        return step.weights.sum(2)
    call = step.call
    last = call.n if last is None else min(last, call.n)
    rows = call.replace(
        q=call.q[:, :, call.n - last :].detach(), k=call.k.detach(),
        rule=call.rule.shift(call.n - last),
    )  # fmt: skip
    if call.b * call.h * last * call.m <= FEW:
        return closed_weights(rows, "received").sum(2)
    found = survey(
        rows.q, rows.k, call.v.detach(), rows.rule, want=("received",),
        k_positions=call.k_positions,
    )  # fmt: skip
    return found.found["received"]


def by_key_head(x: Tensor, g: int) -> Tensor:
    """Average over the query heads that share a key head: x [b, h, ...] gives [b, g, ...]."""
    return x.reshape(x.shape[0], g, x.shape[1] // g, *x.shape[2:]).mean(2)


def smooth(x: Tensor, kernel: int) -> Tensor:
    """Average over neighbors in the last axis, with zeros beyond the ends.

    >>> smooth(torch.tensor([[0.0, 3.0, 0.0, 0.0]]), 3).tolist()
    [[1.0, 1.0, 1.0, 0.0]]
    """
    flat = x.flatten(0, -2)[:, None]
    return avg_pool1d(flat, kernel, 1, kernel // 2)[:, 0].view_as(x)


def rank_of(positions: Tensor) -> Tensor:
    """Count the real keys before each, [b, g, m]: 0 for the first key that is not padding.

    >>> rank_of(torch.tensor([[[-1, 3, 7]]])).tolist()
    [[[-1, 0, 1]]]
    """
    real = positions >= 0
    return torch.where(real, real.long().cumsum(-1) - 1, -1)


def best(score: Tensor, count: Tensor, positions: Tensor) -> Tensor:
    """Return the slots of the `count` [b, g] best-scored keys of each row and head, [b, g, c].

    Slots are in ascending order. Of keys with equal scores the newest stay.

    >>> score, at = torch.tensor([[[1.0, 9.0, 5.0, 7.0]]]), torch.tensor([[[0, 1, 2, -1]]])
    >>> best(score, torch.tensor([[2]]), at).tolist()
    [[[1, 2]]]
    """
    real = positions >= 0
    score = torch.where(real, score.float(), -torch.inf)
    # Sort in reverse order, so that a stable sort puts the newest of equal keys first.
    last = score.shape[-1] - 1
    order = last - score.flip(-1).argsort(dim=-1, descending=True, stable=True)
    order = order[..., : max(int(count.max()), 1)]
    kept = torch.arange(order.shape[-1], device=score.device) < count[..., None]
    kept &= real.gather(2, order)
    m = score.shape[-1]
    order = torch.where(kept, order, m).sort(-1).values
    return torch.where(order < m, order, -1)


def together(slots: Tensor) -> Tensor:
    """Put the empty slots (-1) of slots [b, g, c] last, and drop those empty in every head.

    >>> together(torch.tensor([[[3, -1, 5], [-1, -1, 1]]])).tolist()
    [[[3, 5], [1, -1]]]
    """
    last = torch.iinfo(slots.dtype).max
    slots = torch.where(slots < 0, last, slots).sort(-1).values
    slots = slots[..., : max(int((slots < last).sum(-1).max()), 1)]
    return torch.where(slots < last, slots, -1)
