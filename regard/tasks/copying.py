"""Copying: repeat what was read, in some order; trained on short texts, tested on longer ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.core.method import method
from regard.tasks.base import Batch, Kind, Task, Tokens, asked_at_end, need_whole, one, whole
from regard.tasks.registry import register

# Tokens that mean something; words come after them.
GO, BLANK = 0, 1


@dataclass(frozen=True, kw_only=True)
class _Lengths(Task):
    """Words of one length a batch, from `least` to `length`; tested on twice that length too.

    `x` is the words, GO, and the answer but for its last token: each place from GO on is asked
    for the next token.
    """

    vocab: int = 32
    length: int = 20
    least: int = 1

    def __post_init__(self) -> None:
        need_whole("vocab", self.vocab, 4)
        need_whole("length", self.length, 1)
        need_whole("least", self.least, 1, self.length)

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
        """What is to be written after words [b, n]: [b, n]."""
        raise NotImplementedError

    def draw(self, size: int, random: torch.Generator) -> Batch:
        n = one(self.least, self.length, random)
        words = whole(2, self.vocab, (size, n), random)
        said = self.answer(words)
        x = torch.cat((words, torch.full((size, 1), GO), said[:, :-1]), 1)
        return asked_at_end(x, said)

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
    """Read words, and write them again; trained up to `length`, tested up to twice as many.

    >>> Copy(least=3, length=3).batch(1).x.shape
    torch.Size([1, 6])
    """

    def answer(self, words: Tensor) -> Tensor:
        return words


@register("reverse")
@dataclass(frozen=True, kw_only=True)
class Reverse(_Lengths):
    """Read words, and write them from the last to the first.

    >>> batch = Reverse(least=3, length=3).batch(1)
    >>> batch.y[0, 3].item() == batch.x[0, 2].item()
    True
    """

    def answer(self, words: Tensor) -> Tensor:
        return words.flip(1)


@register("sort")
@dataclass(frozen=True, kw_only=True)
class Sort(_Lengths):
    """Read words, and write them in the order of the alphabet.

    >>> Sort(least=3, length=3).answer(torch.tensor([[5, 9, 2]])).tolist()
    [[2, 5, 9]]
    """

    def answer(self, words: Tensor) -> Tensor:
        return words.sort(1).values


@register("lookup")
@dataclass(frozen=True, kw_only=True)
class Lookup(Task):
    """A list, then numbers of places in it: say what stands at each place (random access).

    >>> Lookup(length=5, asks=2).batch(1).x.shape
    torch.Size([1, 7])
    """

    patterns = ("cs", "ns")
    vocab: int = 16
    length: int = 16
    asks: int = 4

    def __post_init__(self) -> None:
        need_whole("vocab", self.vocab, 2)
        need_whole("length", self.length, 1)
        need_whole("asks", self.asks, 1)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab + self.length)

    @property
    def outputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def longest(self) -> int:
        return self.length + self.asks

    @property
    def chance(self) -> float:
        return 1 / self.vocab

    def draw(self, size: int, random: torch.Generator) -> Batch:
        items = whole(0, self.vocab, (size, self.length), random)
        places = whole(0, self.length, (size, self.asks), random)
        x = torch.cat((items, self.vocab + places), 1)
        return asked_at_end(x, items.gather(1, places))

    def oracle(self, batch: Batch) -> Tensor:
        places = (batch.x - self.vocab).clamp_min(0)
        return batch.x.gather(1, places)


@register("selective_copy")
@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(Task):
    """Some words stand among blanks: write the words, in order, and no blanks.

    >>> SelectiveCopy(length=16, words=4).batch(1).x.shape
    torch.Size([1, 20])
    """

    vocab: int = 16
    length: int = 48
    words: int = 8

    def __post_init__(self) -> None:
        need_whole("vocab", self.vocab, 3)
        need_whole("words", self.words, 1, self.length)

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
        words = whole(2, self.vocab, (size, self.words), random)
        places = torch.rand(size, self.length, generator=random).argsort(1)[:, : self.words]
        x = torch.full((size, self.length), BLANK).scatter_(1, places.sort(1).values, words)
        # The words come again as they are written, after GO.
        x = torch.cat((x, torch.full((size, 1), GO), words[:, :-1]), 1)
        return asked_at_end(x, words)

    def oracle(self, batch: Batch) -> Tensor:
        told = batch.x[:, : self.length]
        # Words first, in the order they stand in.
        order = (told == BLANK).to(torch.uint8).sort(dim=1, stable=True).indices
        answers = torch.zeros_like(batch.y)
        answers[:, self.length :] = told.gather(1, order)[:, : self.words]
        return answers


def pattern_distance(first: list[Tensor], second: list[Tensor]) -> float:
    """How differently two models look: for each head of one, the nearest head of the other.

    Both are lists of maps of weights [b, h, n, n], one a layer. The distance of two heads is the
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
