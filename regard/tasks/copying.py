"""Copying: repeat the input in some order; trained on short texts, tested on longer ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.core.method import method
from regard.tasks.base import (
    Batch,
    Kind,
    Task,
    Tokens,
    asked_at_end,
    distinct,
    integer,
    integers,
    need_integer,
)
from regard.tasks.registry import register

# Special tokens; words come after them.
GO, BLANK = 0, 1


@dataclass(frozen=True, kw_only=True)
class _Lengths(Task):
    """Words, one length per batch from `least` to `length`; tested on twice that length too.

    `x` is the words, GO, and the answer without its last token; each position from GO on is asked
    for the next token.
    """

    vocab: int = 32
    length: int = 20
    least: int = 1

    def __post_init__(self) -> None:
        need_integer("vocab", self.vocab, 4)
        need_integer("length", self.length, 1)
        need_integer("least", self.least, 1, self.length)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def longest(self) -> int:
        return 4 * self.length + 1

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - 2)

    def answer(self, words: Tensor) -> Tensor:
        """Return the answer to words [b, n]: [b, n]."""
        raise NotImplementedError

    def draw(self, size: int, random: torch.Generator) -> Batch:
        n = integer(self.least, self.length, random)
        words = integers(2, self.vocab, (size, n), random)
        answer = self.answer(words)
        x = torch.cat((words, torch.full((size, 1), GO), answer[:, :-1]), 1)
        return asked_at_end(x, answer)

    def oracle(self, batch: Batch) -> Tensor:
        n = int((batch.x[0] == GO).nonzero()[0])
        answers = torch.zeros_like(batch.y)
        answers[:, n:] = self.answer(batch.x[:, :n])
        return answers

    def tests(self) -> dict[str, Task]:
        lengths = (self.length, self.length + self.length // 2, 2 * self.length)
        longer = {f"{n} words": replace(self, least=n, length=n) for n in lengths}
        return {self.name: self, **(longer if self.least < self.length else {})}


@method("pe_length_generalization")
@register("copy")
@dataclass(frozen=True, kw_only=True)
class Copy(_Lengths):
    """Copy the words; trained up to `length` words, tested up to twice as many.

    >>> Copy(least=3, length=3).batch(1).x.shape
    torch.Size([1, 6])
    """

    def answer(self, words: Tensor) -> Tensor:
        return words


@register("reverse")
@dataclass(frozen=True, kw_only=True)
class Reverse(_Lengths):
    """Write the words in reverse order.

    >>> batch = Reverse(least=3, length=3).batch(1)
    >>> batch.y[0, 3].item() == batch.x[0, 2].item()
    True
    """

    def answer(self, words: Tensor) -> Tensor:
        return words.flip(1)


@register("sort")
@dataclass(frozen=True, kw_only=True)
class Sort(_Lengths):
    """Write the words in sorted order.

    >>> Sort(least=3, length=3).answer(torch.tensor([[5, 9, 2]])).tolist()
    [[2, 5, 9]]
    """

    def answer(self, words: Tensor) -> Tensor:
        return words.sort(1).values


@register("lookup")
@dataclass(frozen=True, kw_only=True)
class Lookup(Task):
    """A list, then indices into it: return the item at each index (random access).

    >>> Lookup(length=5, asks=2).batch(1).x.shape
    torch.Size([1, 7])
    """

    patterns = ("cs", "ns")
    vocab: int = 16
    length: int = 16
    asks: int = 4

    def __post_init__(self) -> None:
        need_integer("vocab", self.vocab, 2)
        need_integer("length", self.length, 1)
        need_integer("asks", self.asks, 1)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab + self.length)

    @property
    def outputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def longest(self) -> int:
        return self.length + self.asks

    def draw(self, size: int, random: torch.Generator) -> Batch:
        items = integers(0, self.vocab, (size, self.length), random)
        places = integers(0, self.length, (size, self.asks), random)
        x = torch.cat((items, self.vocab + places), 1)
        return asked_at_end(x, items.gather(1, places))

    def oracle(self, batch: Batch) -> Tensor:
        places = (batch.x - self.vocab).clamp_min(0)
        return batch.x.gather(1, places)


@register("selective_copy")
@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(Task):
    """Words scattered among blanks: write the words in order, without the blanks.

    >>> SelectiveCopy(length=16, words=4).batch(1).x.shape
    torch.Size([1, 20])
    """

    vocab: int = 16
    length: int = 48
    words: int = 8

    def __post_init__(self) -> None:
        need_integer("vocab", self.vocab, 3)
        need_integer("words", self.words, 1, self.length)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def longest(self) -> int:
        return self.length + self.words

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - 2)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        words = integers(2, self.vocab, (size, self.words), random)
        places = distinct(self.words, self.length, size, random)
        x = torch.full((size, self.length), BLANK).scatter_(1, places.sort(1).values, words)
        # The words come again after GO, as they are written.
        x = torch.cat((x, torch.full((size, 1), GO), words[:, :-1]), 1)
        return asked_at_end(x, words)

    def oracle(self, batch: Batch) -> Tensor:
        text = batch.x[:, : self.length]
        # Words first, in their order.
        order = (text == BLANK).to(torch.uint8).sort(dim=1, stable=True).indices
        answers = torch.zeros_like(batch.y)
        answers[:, self.length :] = text.gather(1, order)[:, : self.words]
        return answers


def pattern_distance(first: list[Tensor], second: list[Tensor]) -> float:
    """Return how differently two models attend: each head of one against the nearest of the other.

    Both are lists of attention weights [b, h, n, n], one per layer. The distance of heads is the
    mean over rows of the Jensen-Shannon divergence (in bits) of their weights; means are taken over
    heads, layers and texts.

    >>> maps = [torch.rand(2, 3, 5, 5).softmax(-1)]
    >>> pattern_distance(maps, maps)
    0.0
    """
    found = []
    for a, b in zip(first, second, strict=True):
        p, q = a[:, :, None].double(), b[:, None].double()  # [b, h, h', n, n]
        middle = (p + q) / 2
        gap = (_entropy(middle) - (_entropy(p) + _entropy(q)) / 2).mean(-1)
        found.append(gap.clamp_min(0).min(2).values.mean())
    return float(torch.stack(found).detach().mean())


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1) / math.log(2)
