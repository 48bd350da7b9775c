"""Recall of written pairs as pixels or as characters, with the same rows in both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail
from regard.tasks.base import (
    Batch,
    Kind,
    Numbers,
    Task,
    Tokens,
    answers_at_end,
    asked_at_end,
    distinct,
    integers,
    need_even,
    need_integer,
)
from regard.tasks.registry import register
from regard.tasks.typeset import CHARACTERS, HIGH, WIDE, drawn, patches_of, read, with_question

LETTER, DIGIT, ASK = (CHARACTERS.index(c) for c in "a0?")
PATCH = HIGH


class Items(NamedTuple):
    """Written words: their characters [b, w, c], boxes [b, w, 4], and the answers [b]."""

    words: Tensor
    boxes: Tensor
    answer: Tensor


@dataclass(frozen=True, kw_only=True)
class _Written(Task):
    """Words of a name and a digit, then a name and "?": which digit came with that name?

    A name is one letter or more. Words have random positions on a page of cells, with `gap` empty
    cells after each; the question comes last.
    """

    patterns = ("ns", "cs")
    pairs: int = 4
    names: int = 12
    letters: int = 1
    columns: int = 16
    rows: int = 4
    gap: int = 2

    def __post_init__(self) -> None:
        need_integer("letters", self.letters, 1, 4)
        need_integer("names", self.names, 1, 26**self.letters)
        need_integer("pairs", self.pairs, 1, self.names)
        need_integer("gap", self.gap, 1)
        need_even("columns", self.columns)
        if self.rows * self._a_row < self.pairs + 1:
            fail(
                RuleError, "rows, columns", f"{self.rows}, {self.columns}",
                f"room for {self.pairs} pairs and a question: {self.rows * self._a_row} words fit",
                "pass more rows, or fewer pairs",
            )  # fmt: skip

    @property
    def _a_row(self) -> int:
        return (self.columns + self.gap) // (self.letters + 1 + self.gap)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of 16 x 16 pixels, two cells each."""
        return self.rows, self.columns * WIDE // PATCH

    @property
    def outputs(self) -> Kind:
        return Tokens(10)

    def items(self, size: int, random: torch.Generator | int = 0) -> Items:
        """Draw the words of `size` pages, the same for pixels and for characters.

        >>> WrittenPixels(pairs=2).items(3).words.shape
        torch.Size([3, 3, 2])
        """
        if isinstance(random, int):
            random = torch.Generator().manual_seed(random)
        names = distinct(self.pairs, self.names, size, random)
        digits = integers(0, 10, (size, self.pairs), random)
        which = integers(0, self.pairs, (size, 1), random)
        places = distinct(self.pairs + 1, self.rows * self._a_row, size, random).sort(1).values
        names = torch.cat((names, names.gather(1, which)), 1)
        ends = torch.cat((DIGIT + digits, torch.full_like(which, ASK)), 1)
        # Names are numbers of base 26, far from one another: 7 has no factor in common with 26.
        spelt = [LETTER + (7 * names // 26**k) % 26 for k in range(self.letters)]
        words = torch.stack((*spelt, ends), 2)
        left = (places % self._a_row) * (self.letters + 1 + self.gap) * WIDE
        top = places // self._a_row * HIGH
        right = left + (self.letters + 1) * WIDE
        boxes = torch.stack((left, top, right, top + HIGH), 2)
        return Items(words, boxes, digits.gather(1, which)[:, 0])

    def answered(self, words: Tensor) -> Tensor:
        """Return the digit [b] of the queried name, from words [b, w, c]."""
        same = (words[:, :-1, :-1] == words[:, -1:, :-1]).all(2).to(torch.uint8).argmax(1)
        return words[torch.arange(len(words)), same, -1] - DIGIT


@register("written_pixels")
@dataclass(frozen=True, kw_only=True)
class WrittenPixels(_Written):
    """A page of words as patches of pixels, such as "c7", "m2", "c?": which digit? (needs a font)

    `x` holds patches of 16 x 16 pixels, and a channel that marks the last token, which answers.
    `noise` is the deviation of Gaussian noise on every pixel.

    >>> WrittenPixels(rows=2).batch(5).x.shape
    torch.Size([5, 17, 257])
    """

    noise: float = 0.0

    @property
    def inputs(self) -> Kind:
        return Numbers(PATCH * PATCH + 1)

    @property
    def longest(self) -> int:
        return self.grid[0] * self.grid[1] + 1

    def images(self, items: Items) -> Tensor:
        """Draw pages [b, h, w] without noise."""
        b, _, c = items.words.shape
        cells = torch.zeros(b, self.rows * self.columns, dtype=torch.long)
        first = items.boxes[..., 1] // HIGH * self.columns + items.boxes[..., 0] // WIDE
        cells.scatter_(1, (first[..., None] + torch.arange(c)).flatten(1), items.words.flatten(1))
        return drawn(cells.view(b, self.rows, self.columns))

    def draw(self, size: int, random: torch.Generator) -> Batch:
        items = self.items(size, random)
        patches = patches_of(self.images(items), PATCH)
        if self.noise:
            patches = patches + self.noise * torch.randn(patches.shape, generator=random)
        return asked_at_end(with_question(patches), items.answer)

    def oracle(self, batch: Batch) -> Tensor:
        """Read the characters off the pixels, and look the name up."""
        rows, columns = self.grid
        cut = batch.x[:, :-1, :-1].view(-1, rows, columns, PATCH, PATCH).transpose(2, 3)
        cells = read(cut.flatten(3).flatten(1, 2)).flatten(1)
        answers = torch.zeros_like(batch.y)
        for row, page in enumerate(cells):
            ends = (page >= DIGIT).nonzero()[:, 0]
            words = page[ends[:, None] + torch.arange(-self.letters, 1)]
            answers[row, -1] = self.answered(words[None])[0]
        return answers


@register("written_tokens")
@dataclass(frozen=True, kw_only=True)
class WrittenTokens(_Written):
    """The page of `written_pixels` as characters, word after word.

    >>> WrittenTokens(pairs=2).batch(5).x.shape
    torch.Size([5, 7])
    """

    @property
    def inputs(self) -> Kind:
        return Tokens(len(CHARACTERS))

    @property
    def longest(self) -> int:
        return (self.pairs + 1) * (self.letters + 1) + 1

    @property
    def of_words(self) -> Tensor:
        """Return which tokens spell each word: [words, tokens], 1 or 0."""
        spelt = torch.eye(self.pairs + 1).repeat_interleave(self.letters + 1, 1)
        return torch.nn.functional.pad(spelt, (0, 1))

    def draw(self, size: int, random: torch.Generator) -> Batch:
        items = self.items(size, random)
        x = torch.nn.functional.pad(items.words.flatten(1), (0, 1))
        return asked_at_end(x, items.answer)

    def oracle(self, batch: Batch) -> Tensor:
        words = batch.x[:, :-1].unflatten(1, (-1, self.letters + 1))
        return answers_at_end(batch, self.answered(words))


def as_tokens(task: WrittenPixels) -> WrittenTokens:
    """Return the same task as characters.

    >>> pixels = WrittenPixels(pairs=3)
    >>> a, b = pixels.batch(9, 4), as_tokens(pixels).batch(9, 4)
    >>> bool((a.y[:, -1] == b.y[:, -1]).all())
    True
    """
    knobs = {k: v for k, v in task.knobs().items() if k != "noise"}
    return replace(WrittenTokens(), **knobs)
