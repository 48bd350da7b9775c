"""Missing items: name what a long list leaves out, which needs attention to all of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail
from regard.core.method import method
from regard.tasks.base import (
    Batch,
    Kind,
    Task,
    Tokens,
    answers_at_end,
    asked_at_end,
    distinct,
    need_integer,
)
from regard.tasks.registry import register


@method("attention_overflow")
@register("missing")
@dataclass(frozen=True, kw_only=True)
class Missing(Task):
    """A shuffled list of all items but a few: which one is missing?

    Any missing item is a right answer; `y` holds one of them.

    >>> task = Missing(items=8)
    >>> batch = task.batch(4)
    >>> task.repetition(batch.x[:, :1].expand_as(batch.y), batch)
    1.0
    """

    patterns = ("cs", "ns")
    items: int = 32
    out: int = 1

    def __post_init__(self) -> None:
        need_integer("items", self.items, 2)
        need_integer("out", self.out, 1, self.items - 1)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.items + 1)  # the last one is the question

    @property
    def outputs(self) -> Kind:
        return Tokens(self.items)

    @property
    def longest(self) -> int:
        return self.items - self.out + 1

    @property
    def chance(self) -> float:
        return self.out / self.items

    def draw(self, size: int, random: torch.Generator) -> Batch:
        order = distinct(self.items, self.items, size, random)
        x = torch.cat((order[:, self.out :], torch.full((size, 1), self.items)), 1)
        return asked_at_end(x, order[:, 0])

    def listed(self, batch: Batch) -> Tensor:
        """Count how often each item is listed: [b, items]."""
        counts = torch.zeros(len(batch.x), self.items, device=batch.x.device)
        listed = batch.x[:, :-1]
        return counts.scatter_add_(1, listed, torch.ones_like(listed, dtype=counts.dtype))

    def oracle(self, batch: Batch) -> Tensor:
        return answers_at_end(batch, (-self.listed(batch)).argmax(1))

    def score(self, answers: Tensor, batch: Batch) -> float:
        """Return the fraction of rows whose answer is not in the list."""
        return 1 - self.repetition(answers, batch)

    def repetition(self, answers: Tensor, batch: Batch) -> float:
        """Return the repetition rate: the fraction of rows whose answer is in the list."""
        if answers.shape != batch.y.shape:
            fail(
                RuleError, "answers", list(answers.shape), f"{list(batch.y.shape)}, as `y`",
                "pass one for each position",
            )  # fmt: skip
        return float(self.listed(batch).gather(1, answers[:, -1:]).gt(0).double().mean())

    @staticmethod
    def draws_until_new(repetition: float) -> float:
        """Return the expected number of draws until an answer is new, at a repetition rate.

        >>> Missing.draws_until_new(0.5)
        2.0
        """
        return float("inf") if repetition >= 1 else 1 / (1 - repetition)
