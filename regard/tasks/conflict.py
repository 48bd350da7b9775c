"""Knowledge conflicts: a passage contradicts what was learned; which does a model answer?"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    integers,
    need_fraction,
    need_integer,
)
from regard.tasks.registry import register

# What replaces the answer in a passage.
SWAPS = ("none", "alias", "corpus", "type", "popular")


@method("knowledge_conflict_swap")
@register("conflict")
@dataclass(frozen=True, kw_only=True)
class Conflict(Task):
    """A passage contradicts a learned fact: answer with what the passage says.

    Each of `subjects` has one answer, an entity of one of `types`; every entity has two names. A
    passage holds the subject and the answer among words, and the question repeats the subject.
    `swap` says what the passage has for the answer: the same entity by its other name ("alias"),
    another of the same type ("corpus"), one of another type ("type"), or the most frequent of the
    type ("popular"). A fraction `closed` of rows has no passage and asks for the learned fact.

    >>> task = Conflict()
    >>> batch = task.batch(8)
    >>> task.memorization(batch.y, batch), task.memorization(task.learned(batch), batch)
    (0.0, 1.0)
    """

    subjects: int = 200
    types: int = 4
    entities: int = 16
    length: int = 16
    swap: str = "corpus"
    closed: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("subjects", 2), ("types", 2), ("entities", 3), ("length", 6)):
            need_integer(name, getattr(self, name), least)
        need_fraction("closed", self.closed)
        if self.swap not in SWAPS:
            fail(RuleError, "swap", repr(self.swap), f"one of {', '.join(SWAPS)}", "pass corpus")

    # Tokens: entities, their other names, subjects, 8 words, the question mark.
    @property
    def _all(self) -> int:
        return self.types * self.entities

    @property
    def inputs(self) -> Kind:
        return Tokens(2 * self._all + self.subjects + 9)

    @property
    def outputs(self) -> Kind:
        return Tokens(2 * self._all)

    @property
    def chance(self) -> float:
        return float(self._stated().square().sum())

    def _stated(self) -> Tensor:
        """Return the probability that each entity is the answer: [2 entities]."""
        shape = (self.types, self.entities)
        counts = torch.bincount(self.world(), minlength=self._all).double().view(shape)
        learned = counts / self.subjects
        stated, other = learned, torch.zeros(shape).double()
        if self.swap == "alias":
            stated, other = other, learned
        elif self.swap == "corpus":
            stated = (learned.sum(1, keepdim=True) - learned) / (self.entities - 1)
        elif self.swap == "type":  # of another type, and another place in it
            rest = learned.sum() - learned.sum(1, keepdim=True) - learned.sum(0) + learned
            stated = rest / ((self.types - 1) * (self.entities - 1))
        elif self.swap == "popular":
            stated = torch.zeros(shape).double()
            stated[:, 0], stated[:, 1] = learned[:, 1:].sum(1), learned[:, 0]
        open_book = torch.cat((stated.flatten(), other.flatten()))
        closed = torch.cat((learned.flatten(), torch.zeros(self._all).double()))
        return (1 - self.closed) * open_book + self.closed * closed

    def _popularity(self) -> Tensor:
        """Return how frequent each entity of a type is as an answer, by a power law."""
        rank = torch.arange(1, self.entities + 1).double()
        return (1 / rank) / (1 / rank).sum()

    def world(self) -> Tensor:
        """Return the learned answer of each subject, the same in every batch."""
        fixed = torch.Generator().manual_seed(self.subjects)
        kind = torch.arange(self.subjects) % self.types
        which = torch.multinomial(self._popularity(), self.subjects, True, generator=fixed)
        return kind * self.entities + which

    def draw(self, size: int, random: torch.Generator) -> Batch:
        subject = integers(0, self.subjects, (size,), random)
        learned = self.world()[subject]
        stated = self._swapped(learned, random)
        first = 2 * self._all
        words = first + self.subjects
        x = words + integers(0, 8, (size, self.length), random)
        place = integers(0, self.length - 4, (size,), random)
        rows = torch.arange(size)
        open_book = torch.rand(size, generator=random) >= self.closed
        x[rows[open_book], place[open_book]] = first + subject[open_book]
        x[rows[open_book], place[open_book] + 1] = stated[open_book]
        x[:, -2], x[:, -1] = words + 8, first + subject
        return asked_at_end(x, torch.where(open_book, stated, learned))

    def _swapped(self, learned: Tensor, random: torch.Generator) -> Tensor:
        kind, which = learned // self.entities, learned % self.entities
        step = integers(1, self.entities, learned.shape, random)
        if self.swap == "alias":
            return learned + self._all
        if self.swap == "corpus":
            return kind * self.entities + (which + step) % self.entities
        if self.swap == "type":
            other = (kind + integers(1, self.types, learned.shape, random)) % self.types
            return other * self.entities + (which + step) % self.entities
        if self.swap == "popular":  # the most frequent that is not the answer itself
            return kind * self.entities + torch.where(which == 0, 1, 0)
        return learned

    def type_of(self, entities: Tensor) -> Tensor:
        """Return the type of each entity, by either name."""
        return entities % self._all // self.entities

    def learned(self, batch: Batch) -> Tensor:
        """Answer by the learned facts, ignoring the passage."""
        return answers_at_end(batch, self.world()[batch.x[:, -1] - 2 * self._all])

    def oracle(self, batch: Batch) -> Tensor:
        x = batch.x
        stating = x[:, :-1] == x[:, -1:]
        stated = x.gather(1, stating.to(torch.uint8).argmax(1, keepdim=True) + 1)
        answers = self.learned(batch)
        open_book = stating.any(1)
        answers[open_book, -1] = stated[open_book, 0]
        return answers

    def memorization(self, answers: Tensor, batch: Batch) -> float:
        """Return the memorization ratio p_o / (p_o + p_s) of learned and stated answers.

        Aliases count as the entity that they name.
        """
        answered, stated = answers[:, -1] % self._all, batch.y[:, -1] % self._all
        learned = self.learned(batch)[:, -1]
        from_memory = float((answered == learned).double().mean())
        from_passage = float(((answered == stated) & (stated != learned)).double().mean())
        return from_memory / max(from_memory + from_passage, 1e-12)

    def tests(self) -> dict[str, Task]:
        swaps = {swap: replace(self, swap=swap, closed=0.0) for swap in SWAPS if swap != self.swap}
        return {self.name: self, **swaps}
