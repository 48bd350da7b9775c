"""Questions about pictures of objects, with trees of conditions (gCOG)."""

from __future__ import annotations

import random as plain_random
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
    need_integer,
    python_random,
)
from regard.tasks.registry import register

# Questions about an object: does it exist, its color by shape, its shape by color, its place.
EXIST, COLOR, SHAPE, PLACE = range(4)
# One in five pairs of an operator and the shape or color it names is held out of training.
HELD_OUT = 5
Operation = tuple[int, int, int]


@method("gcog")
@register("scenes")
@dataclass(frozen=True, kw_only=True)
class Scenes(Task):
    """Answer a tree of questions (the text) about a picture of colored shapes (the context).

    A question is an operator with a shape and a color. `depth` 1 is one question; at 3, 5 and 7 an
    existence question chooses between a question and a shallower tree. `distractors` are objects
    that no question is about. A model is tested on more of them, on deeper trees, and on pairs of
    an operator and a shape or color that are held out of training.

    >>> Scenes(side=6).batch(2).context.shape
    torch.Size([2, 36])
    """

    patterns = ("nc",)
    side: int = 10
    shapes: int = 12
    colors: int = 10
    depth: int = 1
    distractors: int = 5
    held_out: bool = False

    def __post_init__(self) -> None:
        if self.depth not in (1, 3, 5, 7):
            fail(
                RuleError,
                "depth",
                self.depth,
                "1, 3, 5 or 7",
                "pass an odd depth; each condition adds two",
            )
        need_integer("shapes", self.shapes, self.depth + 2)
        need_integer("colors", self.colors, self.depth + 2)
        need_integer("distractors", self.distractors, 0, self.side**2 - 2 * self.depth)

    @property
    def inputs(self) -> Kind:
        # Operators, "if", blank, "answer", then shapes and colors.
        return Tokens(7 + self.shapes + self.colors)

    @property
    def contexts(self) -> Kind:
        return Tokens(1 + self.shapes * self.colors)  # 0 is an empty cell

    @property
    def outputs(self) -> Kind:
        # No, yes, then colors, shapes, cells.
        return Tokens(2 + self.colors + self.shapes + self.side**2)

    @property
    def longest(self) -> int:
        return self.side**2

    @property
    def chance(self) -> float:
        kinds = (2, self.colors, self.shapes, self.side**2)
        return sum(1 / (16 * n) for n in kinds)

    def _allowed(self, kind: int, shape: int, color: int) -> bool:
        named = color if kind == SHAPE else shape
        return ((kind + named) % HELD_OUT == 0) == self.held_out

    def _program(self, rng: plain_random.Random) -> list[Operation]:
        """Draw questions from the root on: conditions at even indices, where another two follow."""
        shapes = rng.sample(range(self.shapes), self.depth)
        colors = rng.sample(range(self.colors), self.depth)
        program = []
        for i, (shape, color) in enumerate(zip(shapes, colors, strict=True)):
            condition = i % 2 == 0 and i < self.depth - 1
            kind = EXIST if condition else rng.randrange(4)
            program.append((kind, shape, color))
        return program

    def _drawn(self, rng: plain_random.Random) -> list[Operation]:
        """Draw a program whose answers are all of training pairs, or all of held-out pairs."""
        while True:
            program = self._program(rng)
            last = [op for i, op in enumerate(program) if i % 2 or i == self.depth - 1]
            if all(self._allowed(*op) for op in last):
                return program

    def _objects(self, program: list[Operation], rng: plain_random.Random) -> list[tuple[int, int]]:
        """Draw the objects that the questions are about, and distractors, as (shape, color)."""
        free_shapes = sorted(set(range(self.shapes)) - {op[1] for op in program})
        free_colors = sorted(set(range(self.colors)) - {op[2] for op in program})
        objects = []
        for kind, shape, color in program:
            if kind == COLOR or (kind == EXIST and rng.random() < 0.5):
                color = rng.choice(free_colors)  # the right shape in another color
            elif kind == SHAPE:
                shape = rng.choice(free_shapes)
            objects.append((shape, color))
        others = (
            (rng.choice(free_shapes), rng.choice(free_colors)) for _ in range(self.distractors)
        )
        return [*objects, *others]

    def written(self, program: list[Operation]) -> list[int]:
        """Write a program as tokens, padded in front, with the question token last."""
        text = []
        for i, (kind, shape, color) in enumerate(program):
            if i % 2 == 0 and i < self.depth - 1:
                text.append(4)
            text += [kind, 7 + shape if kind != SHAPE else 5,
                     7 + self.shapes + color if kind != COLOR else 5]  # fmt: skip
        room = 3 * 7 + 3 - len(text)
        return [5] * room + text + [6]

    def draw(self, size: int, random: torch.Generator) -> Batch:
        rng = python_random(random)
        texts, pictures = [], []
        for _ in range(size):
            program = self._drawn(rng)
            picture = [0] * self.side**2
            objects = self._objects(program, rng)
            for cell, (shape, color) in zip(
                rng.sample(range(len(picture)), len(objects)), objects, strict=True
            ):
                picture[cell] = 1 + shape * self.colors + color
            texts.append(self.written(program))
            pictures.append(picture)
        batch = asked_at_end(torch.tensor(texts), torch.zeros(size, dtype=torch.long))
        batch = replace(batch, context=torch.tensor(pictures))
        return replace(batch, y=self.oracle(batch))

    def oracle(self, batch: Batch) -> Tensor:
        assert batch.context is not None
        rows = zip(batch.x.tolist(), batch.context.tolist(), strict=True)
        return answers_at_end(batch, torch.tensor([self.evaluated(*row) for row in rows]))

    def evaluated(self, text: list[int], picture: list[int]) -> int:
        """Answer a text about a picture."""
        text = [t for t in text[:-1] if t != 5]
        # Blanks are not needed: shapes and colors are different tokens.
        program, i = [], 0
        while i < len(text):
            if text[i] == 4:
                i += 1
            kind, i = text[i], i + 1
            shape = color = -1
            while i < len(text) and text[i] >= 7:
                if text[i] < 7 + self.shapes:
                    shape = text[i] - 7
                else:
                    color = text[i] - 7 - self.shapes
                i += 1
            program.append((kind, shape, color))
        while len(program) > 1:
            yes = self._answer(program[0], picture)
            program = [program[1]] if yes else program[2:]
        return self._answer(program[0], picture)

    def _answer(self, operation: Operation, picture: list[int]) -> int:
        kind, shape, color = operation
        for cell, thing in enumerate(picture):
            if not thing:
                continue
            s, c = divmod(thing - 1, self.colors)
            if kind == COLOR and s == shape:
                return 2 + c
            if kind == SHAPE and c == color:
                return 2 + self.colors + s
            if (s, c) == (shape, color):
                return 1 if kind == EXIST else 2 + self.colors + self.shapes + cell
        return 0

    def tests(self) -> dict[str, Task]:
        more = min(20, self.side**2 - 2 * self.depth)
        splits: dict[str, Task] = {self.name: self}
        if not self.held_out:
            splits["20 distractors"] = replace(self, distractors=more)
            splits["new pairs"] = replace(self, held_out=True)
            if self.depth < 7:
                splits[f"depth {self.depth + 2}"] = replace(self, depth=self.depth + 2)
        return splits
