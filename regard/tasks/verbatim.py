"""Verbatim memory: how much less surprising a list is the second time."""

from __future__ import annotations

import math
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
    distinct,
    integers,
    need_fraction,
    need_integer,
)
from regard.tasks.registry import register

CONDITIONS = ("repeat", "permuted", "novel")


@method("verbatim_recall")
@register("verbatim")
@dataclass(frozen=True, kw_only=True)
class Verbatim(Task):
    """A marker, a list of nouns, other words, the marker and the list again: repeat the list.

    `condition` says what the second list is: the same ("repeat"), the same nouns in another order
    ("permuted"), or other nouns ("novel"); a fraction `mixed` of rows has one of the other two, as
    training text does. Only a repeated list can be predicted.

    >>> Verbatim(nouns=3, gap=4).batch(2).x.shape
    torch.Size([2, 11])
    """

    vocab: int = 64
    nouns: int = 5
    gap: int = 10
    condition: str = "repeat"
    mixed: float = 0.0

    def __post_init__(self) -> None:
        need_integer("nouns", self.nouns, 2)
        need_integer("vocab", self.vocab, 2 * self.nouns)
        need_integer("gap", self.gap, 0)
        need_fraction("mixed", self.mixed)
        if self.condition not in CONDITIONS:
            fail(
                RuleError, "condition", repr(self.condition), f"one of {CONDITIONS}", "pass repeat"
            )

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab + 17)  # nouns, 16 words between, the marker

    @property
    def longest(self) -> int:
        return 2 * self.nouns + self.gap + 1

    @property
    def chance(self) -> float:
        return 1 / self.vocab

    def draw(self, size: int, random: torch.Generator) -> Batch:
        n = self.nouns
        names = distinct(2 * n, self.vocab, size, random)
        first, novel = names[:, :n], names[:, n:]
        permuted = first.gather(1, distinct(n, n, size, random))
        lists = dict(zip(CONDITIONS, (first, permuted, novel), strict=True))
        second = lists.pop(self.condition)
        coin = torch.rand(size, 1, generator=random)
        others = list(lists.values())
        second = torch.where(coin < self.mixed / 2, others[0], second)
        second = torch.where((coin >= self.mixed / 2) & (coin < self.mixed), others[1], second)
        marker = torch.full((size, 1), self.vocab + 16)
        between = self.vocab + integers(0, 16, (size, self.gap), random)
        text = torch.cat((marker, first, between, marker, second), 1)
        asked = (torch.arange(text.shape[1] - 1) >= n + self.gap + 1).expand(size, -1).clone()
        return Batch(text[:, :-1], text[:, 1:], asked)

    def oracle(self, batch: Batch) -> Tensor:
        answers = torch.zeros_like(batch.y)
        answers[:, self.nouns + self.gap + 1 :] = batch.x[:, 1 : self.nouns + 1]
        return answers

    def surprisals(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the surprisal in bits of each noun in both lists: two [b, nouns]."""
        log_p = outputs.float().log_softmax(-1).gather(-1, batch.y[..., None])[..., 0]
        bits = -log_p / math.log(2)
        return bits[:, : self.nouns], bits[:, self.nouns + self.gap + 1 :]


def retrieval(first: Tensor, second: Tensor, *, skip: int = 1) -> float:
    """Return the retrieval score: median of 100 · surprisal of the second list over the first.

    100 is no memory, 0 a perfect one. Surprisals are bits [b, nouns]; the first noun, which nothing
    but the marker predicts, is left out of both unless `skip` is 0.

    >>> retrieval(torch.full((3, 4), 6.0), torch.zeros(3, 4))
    0.0
    """
    ratios = 100 * second[:, skip:].mean(1) / first[:, skip:].mean(1).clamp_min(1e-9)
    return float(ratios.median())
