"""Recall: say what came with a key, from pairs that the text itself has told."""

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
    need_even,
    need_share,
    need_whole,
    next_after_match,
    nothing_asked,
    some_of,
    whole,
)
from regard.tasks.registry import register


@dataclass(frozen=True, kw_only=True)
class _Pairs(Task):
    """Keys are tokens of the lower half of the vocabulary, values of the upper; 0 is blank."""

    vocab: int = 256
    length: int = 64
    pairs: int = 4

    def __post_init__(self) -> None:
        need_even("vocab", self.vocab)
        need_whole("pairs", self.pairs, 1, self.vocab // 2 - 1)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def chance(self) -> float:
        return 2 / self.vocab

    def keys_and_values(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw different keys, and different values, for each row: both [size, pairs]."""
        half = self.vocab // 2
        keys = 1 + some_of(self.pairs, half - 1, size, random)
        return keys, half + some_of(self.pairs, half, size, random)

    def oracle(self, batch: Batch) -> Tensor:
        return next_after_match(batch.x)


@method("mqar_zoology")
@register("mqar")
@dataclass(frozen=True, kw_only=True)
class Mqar(_Pairs):
    """Several pairs are told, then every key is asked once, after gaps of a power law (MQAR).

    With keys A, B and values 4, 3: `x` is A 4 B 3 . . B . . . A ., and at the second A the answer
    is 4. What stands between is blank.

    >>> batch = Mqar(length=16, pairs=2).batch(5)
    >>> int(batch.asked.sum())
    10
    """

    patterns = ("cs", "ns")
    power: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        need_even("length", self.length)
        need_whole("pairs", self.pairs, 1, self.length // 4)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        keys, values = self.keys_and_values(size, random)
        told = 2 * self.pairs
        slots = (self.length - told) // 2
        # Different slots by p(g) ~ g^(power - 1): the largest logarithms with Gumbel noise.
        log_p = (self.power - 1) * torch.arange(1, slots + 1).float().log()
        waits = torch.empty(size, slots).exponential_(generator=random)
        places = told + 2 * (log_p - waits.log()).topk(self.pairs, dim=1).indices
        x = torch.zeros(size, self.length, dtype=torch.long)
        x[:, 0:told:2], x[:, 1:told:2] = keys, values
        x.scatter_(1, places, keys)
        y, asked = nothing_asked(x)
        return Batch(x, y.scatter_(1, places, values), asked.scatter_(1, places, True))


@register("recall")
@dataclass(frozen=True, kw_only=True)
class Recall(_Pairs):
    """Pairs fill the text, and the last token is one of the keys: what came with it?

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
                f"take length={2 * self.pairs + 1}, or pairs={(self.length - 1) // 2}",
            )  # fmt: skip

    def draw(self, size: int, random: torch.Generator) -> Batch:
        keys, values = self.keys_and_values(size, random)
        which = whole(0, self.pairs, (size, 1), random)
        x = torch.cat((torch.stack((keys, values), 2).flatten(1), keys.gather(1, which)), 1)
        return asked_at_end(x, values.gather(1, which)[:, 0])


@register("multi_key")
@dataclass(frozen=True, kw_only=True)
class MultiKey(_Pairs):
    """Pairs stand anywhere among random words, and several of their keys are asked at the end.

    The last `asks` tokens are the keys that are asked.

    >>> int(MultiKey(asks=3).batch(4).asked.sum())
    12
    """

    patterns = ("cs", "ns")
    pairs: int = 8
    asks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        need_whole("asks", self.asks, 1, self.pairs)
        need_whole("pairs", self.pairs, 1, min(self.vocab // 4 - 1, (self.length - self.asks) // 2))

    def draw(self, size: int, random: torch.Generator) -> Batch:
        # Keys are the lower quarter; the words between are the next, and match no key.
        quarter, half = self.vocab // 4, self.vocab // 2
        keys = 1 + some_of(self.pairs, quarter - 1, size, random)
        values = half + some_of(self.pairs, half, size, random)
        room = self.length - self.asks
        x = whole(quarter, half, (size, self.length), random)
        places = 2 * some_of(self.pairs, room // 2, size, random)
        x.scatter_(1, places, keys).scatter_(1, places + 1, values)
        which = some_of(self.asks, self.pairs, size, random)
        x[:, room:] = keys.gather(1, which)
        return asked_at_end(x, values.gather(1, which))


@register("needle")
@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """One key and its value are hidden in random words at some depth, and asked for at the end.

    `depth` is a share from 0 (the start) to 1, or below 0 for any.

    >>> Needle(length=32, depth=0.0).batch(1).x[0, 0].item()
    1
    """

    patterns = ("cs", "ns")
    vocab: int = 128
    length: int = 64
    depth: float = -1.0

    def __post_init__(self) -> None:
        need_whole("length", self.length, 4)
        need_whole("vocab", self.vocab, 8)
        if self.depth >= 0:
            need_share("depth", self.depth)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - self.vocab // 2)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        half = self.vocab // 2
        x = whole(2, half, (size, self.length), random)
        value = whole(half, self.vocab, (size,), random)
        last = self.length - 3  # so that the value still stands before the question
        places = whole(0, last + 1, (size,), random)
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
    """Random tokens are shown a second time: say the next one all along the second showing.

    >>> Induction(vocab=10, period=4).batch(1).x.shape
    torch.Size([1, 8])
    """

    vocab: int = 40
    period: int = 16

    def __post_init__(self) -> None:
        need_whole("vocab", self.vocab, 2)
        need_whole("period", self.period, 2, self.vocab)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def longest(self) -> int:
        return 2 * self.period

    @property
    def chance(self) -> float:
        return 1 / self.vocab

    def draw(self, size: int, random: torch.Generator) -> Batch:
        x = some_of(self.period, self.vocab, size, random).repeat(1, 2)
        y, asked = x.roll(-1, 1), torch.zeros_like(x, dtype=torch.bool)
        asked[:, self.period : -1] = True  # what follows the last is not in sight
        return Batch(x, y, asked)

    def oracle(self, batch: Batch) -> Tensor:
        return next_after_match(batch.x)
