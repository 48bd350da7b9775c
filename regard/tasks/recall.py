"""Associative recall: return the value that came with a key earlier in the text."""

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
    asked_at_end,
    distinct,
    integers,
    need_even,
    need_fraction,
    need_integer,
    next_after_match,
)
from regard.tasks.registry import register


@dataclass(frozen=True, kw_only=True)
class _Pairs(Task):
    """Keys are the lower half of the vocabulary, values the upper half; 0 is blank."""

    vocab: int = 256
    length: int = 64
    pairs: int = 4

    def __post_init__(self) -> None:
        need_even("vocab", self.vocab)
        need_integer("pairs", self.pairs, 1, self.vocab // 2 - 1)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def chance(self) -> float:
        return 2 / self.vocab

    def keys_and_values(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw different keys, and different values, for each row: both [size, pairs]."""
        half = self.vocab // 2
        keys = 1 + distinct(self.pairs, half - 1, size, random)
        return keys, half + distinct(self.pairs, half, size, random)

    def oracle(self, batch: Batch) -> Tensor:
        return next_after_match(batch.x)


@method("mqar_zoology")
@register("mqar")
@dataclass(frozen=True, kw_only=True)
class Mqar(_Pairs):
    """Several pairs, then every key is queried once, after power-law gaps (MQAR).

    With keys A, B and values 4, 3: `x` is A 4 B 3 . . B . . . A ., and at the second A the answer
    is 4. All other tokens are blank.

    >>> batch = Mqar(length=16, pairs=2).batch(5)
    >>> int(batch.asked.sum())
    10
    """

    patterns = ("cs", "ns")
    power: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        need_even("length", self.length)
        need_integer("pairs", self.pairs, 1, self.length // 4)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        keys, values = self.keys_and_values(size, random)
        shown = 2 * self.pairs
        slots = (self.length - shown) // 2
        # Different slots by p(g) ~ g^(power - 1): the largest logarithms with Gumbel noise.
        log_p = (self.power - 1) * torch.arange(1, slots + 1).float().log()
        waits = torch.empty(size, slots).exponential_(generator=random)
        places = shown + 2 * (log_p - waits.log()).topk(self.pairs, dim=1).indices
        x = torch.zeros(size, self.length, dtype=torch.long)
        x[:, 0:shown:2], x[:, 1:shown:2] = keys, values
        x.scatter_(1, places, keys)
        asked = torch.zeros_like(x, dtype=torch.bool).scatter_(1, places, True)
        return Batch(x, torch.zeros_like(x).scatter_(1, places, values), asked)


@register("recall")
@dataclass(frozen=True, kw_only=True)
class Recall(_Pairs):
    """Pairs fill the text, and the last token is one of the keys: which value came with it?

    >>> Recall(pairs=3, length=7).batch(2).x.shape
    torch.Size([2, 7])
    """

    patterns = ("cs", "ns")
    length: int = 33
    pairs: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length != 2 * self.pairs + 1:
            fail(
                RuleError, "length", self.length, f"two for each of {self.pairs} pairs and one",
                f"pass length={2 * self.pairs + 1}, or pairs={(self.length - 1) // 2}",
            )  # fmt: skip

    def draw(self, size: int, random: torch.Generator) -> Batch:
        keys, values = self.keys_and_values(size, random)
        which = integers(0, self.pairs, (size, 1), random)
        x = torch.cat((torch.stack((keys, values), 2).flatten(1), keys.gather(1, which)), 1)
        return asked_at_end(x, values.gather(1, which)[:, 0])


@register("multi_key")
@dataclass(frozen=True, kw_only=True)
class MultiKey(_Pairs):
    """Pairs anywhere among random words; several of their keys are queried at the end.

    The last `asks` tokens are the queried keys.

    >>> int(MultiKey(asks=3).batch(4).asked.sum())
    12
    """

    patterns = ("cs", "ns")
    pairs: int = 8
    asks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        need_integer("asks", self.asks, 1, self.pairs)
        need_integer(
            "pairs", self.pairs, 1, min(self.vocab // 4 - 1, (self.length - self.asks) // 2)
        )

    def draw(self, size: int, random: torch.Generator) -> Batch:
        # Keys are the lower quarter; other words are the next quarter, and match no key.
        quarter, half = self.vocab // 4, self.vocab // 2
        keys = 1 + distinct(self.pairs, quarter - 1, size, random)
        values = half + distinct(self.pairs, half, size, random)
        room = self.length - self.asks
        x = integers(quarter, half, (size, self.length), random)
        places = 2 * distinct(self.pairs, room // 2, size, random)
        x.scatter_(1, places, keys).scatter_(1, places + 1, values)
        which = distinct(self.asks, self.pairs, size, random)
        x[:, room:] = keys.gather(1, which)
        return asked_at_end(x, values.gather(1, which))


@register("needle")
@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """A key and its value hidden in random words at some depth, and queried at the end.

    `depth` is a fraction from 0 (the start) to 1, or below 0 for a random one.

    >>> Needle(length=32, depth=0.0).batch(1).x[0, 0].item()
    1
    """

    patterns = ("cs", "ns")
    vocab: int = 128
    length: int = 64
    depth: float = -1.0

    def __post_init__(self) -> None:
        need_integer("length", self.length, 4)
        need_integer("vocab", self.vocab, 8)
        if self.depth >= 0:
            need_fraction("depth", self.depth)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - self.vocab // 2)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        half = self.vocab // 2
        x = integers(2, half, (size, self.length), random)
        value = integers(half, self.vocab, (size,), random)
        last = self.length - 3  # the value comes before the question
        places = integers(0, last + 1, (size,), random)
        if self.depth >= 0:
            places = torch.full((size,), round(self.depth * last))
        rows = torch.arange(size)
        x[rows, places], x[rows, places + 1], x[:, -1] = 1, value, 1
        return asked_at_end(x, value)

    def oracle(self, batch: Batch) -> Tensor:
        return next_after_match(batch.x)

    def tests(self) -> dict[str, Task]:
        deep = {f"depth {d}": Needle(vocab=self.vocab, length=self.length, depth=d)
                for d in (0.0, 0.5, 1.0)}  # fmt: skip
        return {self.name: self, **(deep if self.depth < 0 else {})}


@register("induction")
@dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """Random tokens repeated once: predict the next token throughout the repetition.

    >>> Induction(vocab=10, period=4).batch(1).x.shape
    torch.Size([1, 8])
    """

    vocab: int = 40
    period: int = 16

    def __post_init__(self) -> None:
        need_integer("vocab", self.vocab, 2)
        need_integer("period", self.period, 2, self.vocab)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def longest(self) -> int:
        return 2 * self.period

    def draw(self, size: int, random: torch.Generator) -> Batch:
        x = distinct(self.period, self.vocab, size, random).repeat(1, 2)
        y, asked = x.roll(-1, 1), torch.zeros_like(x, dtype=torch.bool)
        asked[:, self.period : -1] = True  # the token after the last is unknown
        return Batch(x, y, asked)

    def oracle(self, batch: Batch) -> Tensor:
        return next_after_match(batch.x)
