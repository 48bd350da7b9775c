"""Landmarks: one key of each block stands for the block, and shares its weight out inside it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.partial import finite, log_sum_exp
from regard.core.score.base import At, Change, ScoreMod
from regard.core.value import value


@value
class Landmarks(ScoreMod):
    """Weigh blocks by their landmarks, and the keys of a block among themselves.

    Positions run in blocks of `size`, the last of each being its landmark. A query shares one unit
    among the keys of its own block and the landmarks of earlier ones; what a landmark got is
    shared by the other keys of its block. `count` keeps only the best landmarks of a query.

    >>> Landmarks(8, count=2)
    Landmarks(8, 2)
    """

    size: int
    count: int | None = None
    needs_row: ClassVar = True

    @property
    def may_remove(self) -> bool:
        """It removes later landmarks, and its own."""
        return True

    def __post_init__(self) -> None:
        if self.size < 2:
            fail(ValueRangeError, "size", self.size, "at least 2", "a block has a token and a mark")
        if self.count is not None and self.count < 1:
            fail(ValueRangeError, "count", self.count, "at least 1", "keep the best block")

    def bind(self, q: Tensor, k: Tensor) -> Change:
        """Regroup a whole row of scores."""

        def change(scores: Tensor, at: At) -> Tensor:
            if at.allowed is not None:
                scores = scores.masked_fill(~at.allowed, -torch.inf)
            m = scores.shape[-1]
            blocks = -(-m // self.size)
            whole = torch.nn.functional.pad(
                scores, (0, blocks * self.size - m), value=-torch.inf
            ).unflatten(-1, (blocks, self.size))
            marks, ordinary = whole[..., -1], whole[..., :-1]
            own = torch.div(at.i, self.size, rounding_mode="floor")
            earlier = torch.arange(blocks, device=scores.device) < own
            marks = torch.where(earlier, marks, -torch.inf)
            if self.count is not None and self.count < blocks:
                least = marks.topk(self.count, dim=-1).values[..., -1:]
                marks = torch.where(marks >= least, marks, -torch.inf)
            # exp(s_j - lse) of what the landmark gets; the own block counts for itself.
            among = log_sum_exp(ordinary, dim=-1)
            shift = torch.where(earlier, marks - finite(among), 0.0)
            shared = ordinary + shift[..., None]
            gone = torch.full_like(whole[..., -1:], -torch.inf)
            regrouped = torch.cat((shared, gone), -1).flatten(-2)[..., :m]
            return regrouped

        return change
