"""Verbatim memory: a list that is shown twice, and how much less the second showing surprises."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail
from regard.core.method import method
from regard.tasks.base import Batch, Kind, Task, Tokens, need_share, need_whole, some_of, whole
from regard.tasks.registry import register

CONDITIONS = ("repeat", "permuted", "novel")


@method("verbatim_recall")
@register("verbatim")
@dataclass(frozen=True, kw_only=True)
class Verbatim(Task):
    """A sign, a list of nouns, other words, the sign again, and the list again: say it again.

    `condition` says what the second list is: the same ("repeat"), the same nouns in another order
    ("permuted"), or other nouns ("novel"); a share `mixed` of rows has one of the other two, as
    text that a model learns from does. Only a repeated list can be told.

    >>> Verbatim(nouns=3, gap=4).batch(2).x.shape
    torch.Size([2, 11])
    """

    vocab: int = 64
    nouns: int = 5
    gap: int = 10
    condition: str = "repeat"
    mixed: float = 0.0

    def __post_init__(self) -> None:
        need_whole("nouns", self.nouns, 2)
        need_whole("vocab", self.vocab, 2 * self.nouns)
        need_whole("gap", self.gap, 0)
        need_share("mixed", self.mixed)
        if self.condition not in CONDITIONS:
            fail(
                RuleError, "condition", repr(self.condition), f"one of {CONDITIONS}", "take repeat"
            )

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab + 17)  # nouns, 16 words between, the sign

    @property
    def longest(self) -> int:
        return 2 * self.nouns + self.gap + 1

    @property
    def chance(self) -> float:
        return 1 / self.vocab

    def draw(self, size: int, random: torch.Generator) -> Batch:
        n = self.nouns
        names = some_of(2 * n, self.vocab, size, random)
        first, novel = names[:, :n], names[:, n:]
        permuted = first.gather(1, some_of(n, n, size, random))
        lists = dict(zip(CONDITIONS, (first, permuted, novel), strict=True))
        second = lists.pop(self.condition)
        coin = torch.rand(size, 1, generator=random)
        others = list(lists.values())
        second = torch.where(coin < self.mixed / 2, others[0], second)
        second = torch.where((coin >= self.mixed / 2) & (coin < self.mixed), others[1], second)
        sign = torch.full((size, 1), self.vocab + 16)
        between = self.vocab + whole(0, 16, (size, self.gap), random)
        text = torch.cat((sign, first, between, sign, second), 1)
        asked = (torch.arange(text.shape[1] - 1) >= n + self.gap + 1).expand(size, -1).clone()
        return Batch(text[:, :-1], text[:, 1:], asked)

    def oracle(self, batch: Batch) -> Tensor:
        answers = torch.zeros_like(batch.y)
        answers[:, self.nouns + self.gap + 1 :] = batch.x[:, 1 : self.nouns + 1]
        return answers

    def surprisals(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Bits of surprise of each noun in the first list and in the second: both [b, nouns]."""
        log_p = outputs.float().log_softmax(-1).gather(-1, batch.y[..., None])[..., 0]
        bits = -log_p / math.log(2)
        return bits[:, : self.nouns], bits[:, self.nouns + self.gap + 1 :]


def retrieval(first: Tensor, second: Tensor, *, skip: int = 1) -> float:
    """The retrieval score: median over rows of 100 · surprise of the second list over the first.

    100 is no memory, 0 a perfect one. Surprises are bits [b, nouns]; the first noun, which only the
    beginning of a list foretells, is left out of both unless `skip` is 0.

    >>> retrieval(torch.full((3, 4), 6.0), torch.zeros(3, 4))
    0.0
    """
    ratios = 100 * second[:, skip:].mean(1) / first[:, skip:].mean(1).clamp_min(1e-9)
    return float(ratios.median())
