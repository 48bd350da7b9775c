"""Small programs to execute: nested lists, brackets, swaps and steps."""

from __future__ import annotations

import random as plain_random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.core.method import method
from regard.tasks.base import (
    Batch,
    Kind,
    Task,
    Tokens,
    answers_at_end,
    asked_at_end,
    distinct,
    integers,
    need_even,
    need_integer,
    python_random,
)
from regard.tasks.registry import register


@register("list_ops")
@dataclass(frozen=True, kw_only=True)
class ListOps(Task):
    """Evaluate nested operations on digits, such as [MAX 2 9 [MIN 4 7]].

    Operations are MIN, MAX, MED (the lower median) and SM (the sum modulo 10). Texts are padded in
    front, and the last token is the question. Values are uniform, so that no guess is better.

    >>> ListOps(length=32).batch(2).x.shape
    torch.Size([2, 32])
    """

    patterns = ("cs", "ns")
    length: int = 48
    depth: int = 2
    most: int = 4

    # Tokens: digits 0 to 9, four opening operations, the closing bracket, a blank, the question.
    def __post_init__(self) -> None:
        need_integer("length", self.length, 8)
        need_integer("depth", self.depth)
        need_integer("most", self.most, 2)

    @property
    def inputs(self) -> Kind:
        return Tokens(17)

    @property
    def outputs(self) -> Kind:
        return Tokens(10)

    def _written(self, rng: plain_random.Random, depth: int) -> list[int]:
        if depth == 0 or (depth < self.depth and rng.random() < 0.5):
            return [rng.randrange(10)]
        parts = [self._written(rng, depth - 1) for _ in range(rng.randint(2, self.most))]
        return [10 + rng.randrange(4), *(t for part in parts for t in part), 14]

    @staticmethod
    def value(text: list[int]) -> int:
        """Evaluate a text.

        >>> ListOps.value([11, 2, 9, 10, 4, 7, 14, 14])
        9
        """
        open_lists: list[list[int]] = [[]]
        for token in text:
            if token < 10:
                open_lists[-1].append(token)
            elif token < 14:
                open_lists.append([token])
            elif token == 14:
                operation, *of = open_lists.pop()
                of.sort()
                made = (of[0], of[-1], of[(len(of) - 1) // 2], sum(of) % 10)
                open_lists[-1].append(made[operation - 10])
        return open_lists[0][0]

    def draw(self, size: int, random: torch.Generator) -> Batch:
        rng = python_random(random)
        x = torch.full((size, self.length), 15)
        x[:, -1] = 16
        wanted = []
        for row in range(size):
            wanted.append(rng.randrange(10))
            while True:
                text = self._written(rng, self.depth)
                if len(text) < self.length and self.value(text) == wanted[row]:
                    break
            x[row, self.length - 1 - len(text) : -1] = torch.tensor(text)
        return asked_at_end(x, torch.tensor(wanted))

    def oracle(self, batch: Batch) -> Tensor:
        return answers_at_end(batch, torch.tensor([self.value(row) for row in batch.x.tolist()]))


@method("big_bench")
@register("dyck")
@dataclass(frozen=True, kw_only=True)
class Dyck(Task):
    """Brackets of several kinds, nested up to a depth: which kind closes at each closing position?

    Opening brackets show their kind; closing ones share a token, and the answer is the kind of
    the last bracket that is still open.

    >>> batch = Dyck(length=16).batch(2)
    >>> bool((batch.x[batch.asked] == 4).all())
    True
    """

    kinds: int = 4
    length: int = 32
    depth: int = 6

    def __post_init__(self) -> None:
        need_integer("kinds", self.kinds, 2)
        need_integer("length", self.length, 2)
        need_integer("depth", self.depth)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.kinds + 1)

    @property
    def outputs(self) -> Kind:
        return Tokens(self.kinds)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        coins = torch.rand(size, self.length, generator=random)
        kinds = integers(0, self.kinds, (size, self.length), random)
        x, level = torch.zeros_like(kinds), torch.zeros(size, dtype=torch.long)
        for i in range(self.length):
            opens = ((coins[:, i] < 0.5) & (level < self.depth)) | (level == 0)
            x[:, i] = torch.where(opens, kinds[:, i], self.kinds)
            level = level + torch.where(opens, 1, -1)
        batch = Batch(x, torch.zeros_like(x), x == self.kinds)
        return Batch(x, self.oracle(batch), batch.asked)

    def oracle(self, batch: Batch) -> Tensor:
        x, rows = batch.x, torch.arange(len(batch.x))
        stack = torch.zeros(len(x), x.shape[1] + 1, dtype=torch.long)
        level, answers = torch.zeros(len(x), dtype=torch.long), torch.zeros_like(x)
        for i in range(x.shape[1]):
            opens = x[:, i] < self.kinds
            top = (level - 1).clamp_min(0)
            answers[:, i] = torch.where(opens, 0, stack[rows, top])
            place = torch.where(opens, level, top)
            stack[rows, place] = torch.where(opens, x[:, i], stack[rows, place])
            level = torch.where(opens, level + 1, top)
        return answers

    def tests(self) -> dict[str, Task]:
        twice = 2 * self.length
        return {self.name: self, f"length {twice}": replace(self, length=twice)}


@register("tracking")
@dataclass(frozen=True, kw_only=True)
class Tracking(Task):
    """Each person holds an object, and pairs of people swap: what does one hold in the end?

    The text is the objects in the order of their holders, the swaps, and the person asked about.

    >>> Tracking(people=3, swaps=2).batch(1).x.shape
    torch.Size([1, 8])
    """

    patterns = ("cs", "ns")
    people: int = 5
    swaps: int = 3

    def __post_init__(self) -> None:
        need_integer("people", self.people, 2)
        need_integer("swaps", self.swaps)

    @property
    def inputs(self) -> Kind:
        return Tokens(2 * self.people)  # objects, then people

    @property
    def outputs(self) -> Kind:
        return Tokens(self.people)

    @property
    def longest(self) -> int:
        return self.people + 2 * self.swaps + 1

    def draw(self, size: int, random: torch.Generator) -> Batch:
        objects = distinct(self.people, self.people, size, random)
        pairs = [distinct(2, self.people, size, random) for _ in range(self.swaps)]
        last = integers(0, self.people, (size, 1), random)
        x = torch.cat((objects, *(self.people + p for p in (*pairs, last))), 1)
        batch = asked_at_end(x, torch.zeros_like(x[:, -1]))
        return replace(batch, y=self.oracle(batch))

    def oracle(self, batch: Batch) -> Tensor:
        holds = batch.x[:, : self.people].clone()
        for i in range(self.swaps):
            start = self.people + 2 * i
            pair = batch.x[:, start : start + 2] - self.people
            holds = holds.scatter(1, pair, holds.gather(1, pair.flip(1)))
        answers = torch.zeros_like(batch.y)
        answers[:, -1:] = holds.gather(1, batch.x[:, -1:] - self.people)
        return answers


@register("navigate")
@dataclass(frozen=True, kw_only=True)
class Navigate(Task):
    """Steps north, east, south and west: does the walk return to its start?

    It does in half of the rows.

    >>> Navigate(steps=6).batch(1).x.shape
    torch.Size([1, 7])
    """

    patterns = ("cs", "ns")
    steps: int = 16

    def __post_init__(self) -> None:
        need_integer("steps", self.steps, 2)
        need_even("steps", self.steps)

    @property
    def inputs(self) -> Kind:
        return Tokens(5)

    @property
    def outputs(self) -> Kind:
        return Tokens(2)

    @property
    def longest(self) -> int:
        return self.steps + 1

    def draw(self, size: int, random: torch.Generator) -> Batch:
        half = self.steps // 2
        out = integers(0, 4, (size, half), random)
        order = distinct(self.steps, self.steps, size, random)
        # A walk and its opposite, shuffled, return; with one step turned they do not.
        walk = torch.cat((out, (out + 2) % 4), 1).gather(1, order)
        strays = torch.rand(size, generator=random) < 0.5
        place = integers(0, self.steps, (size, 1), random)
        turned = (walk.gather(1, place) + integers(1, 4, (size, 1), random)) % 4
        walk = torch.where(strays[:, None], walk.scatter(1, place, turned), walk)
        x = torch.cat((walk, torch.full((size, 1), 4)), 1)
        return asked_at_end(x, (~strays).long())

    def oracle(self, batch: Batch) -> Tensor:
        steps = torch.nn.functional.one_hot(batch.x[:, :-1], 4).sum(1)
        back = (steps[:, 0] == steps[:, 2]) & (steps[:, 1] == steps[:, 3])
        return answers_at_end(batch, back.long())
