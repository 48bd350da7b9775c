"""Evict by what the question at the end of a prompt attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.models.weights import closed_weights
from regard.policies.base import Step
from regard.policies.evicting import SnapKV
from regard.policies.registry import register
from regard.policies.scoring import FEW, by_key_head, rank_of


@register("finch")
@dataclass
class Finch(SnapKV):
    """Keep what the question, the last `window` tokens of the prompt, attends to.

    score(j) = mean over these queries i of A[i, j] times the keys before i, so that late queries,
    which share their weight among more keys, count as much as early ones; mean over the query heads
    of a key head, without smoothing. The question itself stays. Keys keep their positions, and a
    prompt in pieces is scored piece by piece. (FINCH, Corallo and Papotti 2024)
    """

    kernel: int = 1

    def score(self, step: Step) -> Tensor:
        """Score by the weights of the question."""
        call, w = step.call, min(self.window, step.n)
        before = rank_of(step.positions)[:, 0, call.m - w :].clamp(min=0).float()  # [b, w]
        few = max(1, FEW // (call.b * call.h * call.m))
        votes = call.q.new_zeros(call.b, call.h, call.m, dtype=torch.float32)
        for some in torch.arange(w).split(few):
            first = call.n - w + int(some[0])
            rows = call.replace(
                q=call.q[:, :, first : first + len(some)].detach(), k=call.k.detach(),
                rule=call.rule.shift(first),
            )  # fmt: skip
            weights = closed_weights(rows, "finch").float()
            votes += torch.einsum("bhwm,bw->bhm", weights, before[:, some])
        own = by_key_head(votes[..., : call.m - w] / w, call.g)
        return torch.nn.functional.pad(own, (0, w))
