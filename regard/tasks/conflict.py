"""Knowledge conflicts: a passage says other than what was learned; which does a model answer?"""

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
    asked_at_end,
    need_share,
    need_whole,
    whole,
)
from regard.tasks.registry import register

# How the answer in a passage is put into another's place.
SWAPS = ("none", "alias", "corpus", "type", "popular")


@method("knowledge_conflict_swap")
@register("conflict")
@dataclass(frozen=True, kw_only=True)
class Conflict(Task):
    """A passage states a fact where another was learned: say what the passage says.

    A world of `subjects` has one answer each, of one of `types` of entities; every entity has two
    names. A passage holds the subject and the answer among words, the question the subject again.
    `swap` puts into the passage: the same entity by its other name ("alias"), another answer of the
    same type ("corpus"), one of another type ("type"), or the type's most usual one ("popular").
    A share `closed` of rows has no passage, and asks for the fact of the world.

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
            need_whole(name, getattr(self, name), least)
        need_share("closed", self.closed)
        if self.swap not in SWAPS:
            fail(RuleError, "swap", repr(self.swap), f"one of {', '.join(SWAPS)}", "take corpus")

    # Tokens: entities, their other names, subjects, 8 words, the sign of a question.
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
        """How often each entity is what a row wants: [2 entities]."""
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
        """How usual an entity of a type is as an answer: the first the most, by a power law."""
        rank = torch.arange(1, self.entities + 1).double()
        return (1 / rank) / (1 / rank).sum()

    def world(self) -> Tensor:
        """The entity that is the answer for each subject: the same in every batch."""
        fixed = torch.Generator().manual_seed(self.subjects)
        kind = torch.arange(self.subjects) % self.types
        which = torch.multinomial(self._popularity(), self.subjects, True, generator=fixed)
        return kind * self.entities + which

    def draw(self, size: int, random: torch.Generator) -> Batch:
        subject = whole(0, self.subjects, (size,), random)
        learned = self.world()[subject]
        stated = self._swapped(learned, random)
        first = 2 * self._all
        words = first + self.subjects
        x = words + whole(0, 8, (size, self.length), random)
        place = whole(0, self.length - 4, (size,), random)
        rows = torch.arange(size)
        open_book = torch.rand(size, generator=random) >= self.closed
        x[rows[open_book], place[open_book]] = first + subject[open_book]
        x[rows[open_book], place[open_book] + 1] = stated[open_book]
        x[:, -2], x[:, -1] = words + 8, first + subject
        return asked_at_end(x, torch.where(open_book, stated, learned))

    def _swapped(self, learned: Tensor, random: torch.Generator) -> Tensor:
        kind, which = learned // self.entities, learned % self.entities
        step = whole(1, self.entities, learned.shape, random)
        if self.swap == "alias":
            return learned + self._all
        if self.swap == "corpus":
            return kind * self.entities + (which + step) % self.entities
        if self.swap == "type":
            other = (kind + whole(1, self.types, learned.shape, random)) % self.types
            return other * self.entities + (which + step) % self.entities
        if self.swap == "popular":  # the most usual that is not the answer itself
            return kind * self.entities + torch.where(which == 0, 1, 0)
        return learned

    def type_of(self, entities: Tensor) -> Tensor:
        """The type of each entity, by either name."""
        return entities % self._all // self.entities

    def learned(self, batch: Batch) -> Tensor:
        """Answer by the world alone, whatever the passage says."""
        answers = torch.zeros_like(batch.y)
        answers[:, -1] = self.world()[batch.x[:, -1] - 2 * self._all]
        return answers

    def oracle(self, batch: Batch) -> Tensor:
        x = batch.x
        told = x[:, :-1] == x[:, -1:]
        stated = x.gather(1, told.to(torch.uint8).argmax(1, keepdim=True) + 1)
        answers = self.learned(batch)
        open_book = told.any(1)
        answers[open_book, -1] = stated[open_book, 0]
        return answers

    def memorization(self, answers: Tensor, batch: Batch) -> float:
        """The memorization ratio p_o / (p_o + p_s): of answers that are the learned or the stated.

        Aliases count as what they name.
        """
        said, stated = answers[:, -1] % self._all, batch.y[:, -1] % self._all
        learned = self.learned(batch)[:, -1]
        from_memory = float((said == learned).double().mean())
        from_passage = float(((said == stated) & (stated != learned)).double().mean())
        return from_memory / max(from_memory + from_passage, 1e-12)

    def tests(self) -> dict[str, Task]:
        swaps = {swap: replace(self, swap=swap, closed=0.0) for swap in SWAPS if swap != self.swap}
        return {self.name: self, **swaps}
