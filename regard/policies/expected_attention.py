"""Evict by the attention that keys can expect from future queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import RegardError
from regard.core.heads import expand_heads
from regard.models.rotary import Turn, rotations_of
from regard.models.site import Sites
from regard.policies.base import Step
from regard.policies.kinds import Evict
from regard.policies.registry import register
from regard.policies.scoring import by_key_head, rank_of
from regard.run.counting import multiply
from regard.run.executor import Answer, No, Yes


@register("expected_attention", "expectedattention")
@dataclass
class ExpectedAttention(Evict):
    """Keep the keys with the largest expected attention from future queries, times |v|.

    Queries of the prompt, before their rotation, are modeled as normal with mean mu and covariance
    C. Rotated to each of the next `ahead` positions, and averaged over these (R):

        score(j) = softmax_j(s k_j . R mu + s^2 / 2 k_j . R C R^T k_j) |v_j|

    with s the scale of the scores, mean over the query heads of a key head. The first `sinks`
    tokens stay, and do not count as queries or keys. (Expected Attention, Devoto et al. 2025)
    """

    sinks: int = 4
    ahead: int = 512
    covariance: bool = True
    turns: dict[int, Turn] = field(default_factory=dict, init=False, repr=False)

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model's queries can be rotated to later positions."""
        try:
            self.turns = rotations_of(model, [s.layer or 0 for s in sites])
        except RegardError as why:
            return No(f"whose queries cannot be rotated to later positions ({why})")
        return Yes()

    def score(self, step: Step) -> Tensor:
        """Score by the moments of future queries."""
        call, k = step.call, step.call.k.float()
        mean, spread = self.moments(step)
        product = call.rule.score.match.prepare(call.q, call.k)
        scale = call.d**-0.5 if product is None else product[2]
        k_all = expand_heads(k, call.h)
        s = scale * multiply(k_all, mean[..., None]).squeeze(-1)
        if self.covariance:
            s = s + scale**2 / 2 * (multiply(k_all, spread) * k_all).sum(-1)
        rank = rank_of(step.positions)
        counted = expand_heads(rank >= min(self.sinks, call.m - 1), call.h)
        weight = by_key_head(s.masked_fill(~counted, -torch.inf).softmax(-1), call.g)
        return weight.nan_to_num() * call.v.float().norm(dim=-1)

    def moments(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the mean [b, h, d] and the covariance [b, h, d, d] of future queries."""
        call, turn = step.call, self.turns[step.site.layer or 0]
        at = self._places(step)
        bare = turn.back(call.q.float(), at)
        rank = rank_of(step.positions)[:, 0, -call.n :]
        counted = rank >= self.sinks
        counted = torch.where(counted.any(1, keepdim=True), counted, rank >= 0).float()
        w = counted / counted.sum(1, keepdim=True).clamp(min=1)
        shares = w[:, None, None]
        mean = multiply(shares, bare)[:, :, 0]
        apart = bare - mean[:, :, None]
        spread = multiply(apart.mT * shares, apart)
        # A rotation by start + p is one by p, then one by start: so the average is over p alone.
        average, start = self._average(turn, call.d, bare), at[:, -1:] + 1
        mean = turn.turn(multiply(mean, average)[:, :, None], start)[:, :, 0]
        start = start.expand(-1, call.d)
        spread = turn.turn(multiply(multiply(average.mT, spread), average), start)
        return mean, turn.turn(spread.mT, start)

    def _places(self, step: Step) -> Tensor:
        """Return the positions of the queries, [b or 1, n]."""
        forward = step.call.forward
        now: Tensor | None = None if forward is None else forward.positions
        if now is None:
            now = torch.arange(step.seen - step.n, step.seen, device=step.call.q.device)[None]
        return now[..., -step.n :]

    def _average(self, turn: Turn, d: int, like: Tensor) -> Tensor:
        """Return the mean of the rotations by 0 to `ahead` - 1 positions, [d, d]."""
        held = self.held.setdefault("average", {})
        if id(turn) not in held:
            one = torch.eye(d, dtype=like.dtype, device=like.device)
            at = torch.arange(self.ahead, device=like.device)[:, None].expand(-1, d)
            turned = turn.turn(one.expand(self.ahead, 1, d, d), at) / turn.scale
            held[id(turn)] = turned.mean((0, 1))
        average: Tensor = held[id(turn)]
        return average
