"""A toy task for each attention pattern: self and cross, causal and noncausal (after CAB)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.tasks.base import (
    Batch,
    Kind,
    Numbers,
    Task,
    Tokens,
    distinct,
    integers,
    need_even,
    need_fraction,
    need_integer,
)
from regard.tasks.registry import register


@register("denoise")
@dataclass(frozen=True, kw_only=True)
class Denoise(Task):
    """A palindrome with holes: fill the holes (noncausal self).

    Of two mirrored positions at most one is a hole, so that the text determines the answer.

    >>> Denoise(length=8).batch(1).x.shape
    torch.Size([1, 8])
    """

    patterns = ("ns",)
    vocab: int = 32
    length: int = 32
    holes: float = 0.5

    def __post_init__(self) -> None:
        need_even("length", self.length)
        need_fraction("holes", self.holes)
        need_integer("vocab", self.vocab, 2)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.vocab + 1)  # the last one is a hole

    @property
    def outputs(self) -> Kind:
        return Tokens(self.vocab)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        half = self.length // 2
        first = integers(0, self.vocab, (size, half), random)
        text = torch.cat((first, first.flip(1)), 1)
        coins = torch.rand(size, half, generator=random)
        left = coins < self.holes / 2
        right = (coins >= self.holes / 2) & (coins < self.holes)
        left[:, 0] |= ~(left | right).any(1)  # something is asked in every row
        asked = torch.cat((left, right.flip(1)), 1)
        return Batch(text.masked_fill(asked, self.vocab), text, asked)

    def oracle(self, batch: Batch) -> Tensor:
        return torch.where(batch.x == self.vocab, batch.x.flip(1), batch.x)


@register("translation")
@dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """Reverse a source text and map each word by a dictionary (noncausal cross).

    A query knows only its position i: the answer is the dictionary's word for the source's i-th
    word from the end. The dictionary is the same in all texts.

    >>> Translation(length=8).batch(1).context.shape
    torch.Size([1, 8])
    """

    patterns = ("nc",)
    vocab: int = 32
    length: int = 16

    def __post_init__(self) -> None:
        need_integer("vocab", self.vocab, 2)
        need_integer("length", self.length)

    @property
    def inputs(self) -> Kind:
        return Tokens(1)

    @property
    def contexts(self) -> Kind:
        return Tokens(self.vocab)

    @property
    def outputs(self) -> Kind:
        return Tokens(self.vocab)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        source = integers(0, self.vocab, (size, self.length), random)
        x = torch.zeros_like(source)
        asked = torch.ones_like(x, dtype=torch.bool)
        batch = Batch(x, x, asked, source)
        return Batch(x, self.oracle(batch), asked, source)

    def oracle(self, batch: Batch) -> Tensor:
        assert batch.context is not None
        words = torch.Generator().manual_seed(self.vocab)
        dictionary = torch.randperm(self.vocab, generator=words).to(batch.x.device)
        return dictionary[batch.context.flip(1)]


@register("streaming")
@dataclass(frozen=True, kw_only=True)
class StreamingCross(Task):
    """Key-value pairs arrive one per step; a query may see the past ones (causal cross).

    A pair is one token of the context. In the first half of the steps every key comes once, and is
    queried afterwards; in the second half it comes again with another value, which misleads a layer
    that looks ahead.

    >>> StreamingCross(keys=4).batch(1).context.shape
    torch.Size([1, 8])
    """

    patterns = ("cc",)
    keys: int = 16
    values: int = 8

    def __post_init__(self) -> None:
        need_integer("keys", self.keys, 2)
        need_integer("values", self.values, 2)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.keys)

    @property
    def contexts(self) -> Kind:
        return Tokens(self.keys * self.values)

    @property
    def outputs(self) -> Kind:
        return Tokens(self.values)

    @property
    def longest(self) -> int:
        return 2 * self.keys

    def draw(self, size: int, random: torch.Generator) -> Batch:
        n = self.keys
        order = torch.cat([distinct(n, n, size, random) for _ in range(2)], 1)
        context = order * self.values + integers(0, self.values, (size, 2 * n), random)
        # At step i one of the keys that came up to i is queried.
        upto = torch.arange(1, 2 * n + 1).clamp_max(n)
        step = (torch.rand(size, 2 * n, generator=random) * upto).long()
        x = order.gather(1, step)
        asked = (torch.arange(2 * n) < n).expand(size, -1).clone()
        batch = Batch(x, torch.zeros_like(x), asked, context)
        return Batch(x, self.oracle(batch), asked, context)

    def oracle(self, batch: Batch) -> Tensor:
        assert batch.context is not None
        n = batch.x.shape[1]
        same = batch.x[:, :, None] == (batch.context // self.values)[:, None]
        came = torch.arange(n)[:, None] >= torch.arange(n)
        first = (same & came).to(torch.uint8).argmax(2)
        return batch.context.gather(1, first) % self.values


@register("cloud")
@dataclass(frozen=True, kw_only=True)
class Cloud(Task):
    """Points of a closed curve, in any order: where is the curve in other directions? (nc)

    A curve has radius 1 plus `waves` random waves around it. Queries are directions, answers the
    points there.

    >>> Cloud(seen=12, asks=4).batch(2).y.shape
    torch.Size([2, 4, 2])
    """

    patterns = ("nc",)
    seen: int = 24
    asks: int = 16
    waves: int = 2

    def __post_init__(self) -> None:
        need_integer("waves", self.waves)
        need_integer("seen", self.seen, 2 * self.waves + 2)
        need_integer("asks", self.asks)

    @property
    def inputs(self) -> Kind:
        return Numbers(2)

    @property
    def contexts(self) -> Kind:
        return Numbers(2)

    @property
    def longest(self) -> int:
        return max(self.seen, self.asks)

    def _waves(self, angle: Tensor) -> Tensor:
        k = torch.arange(1, self.waves + 1, dtype=angle.dtype)
        phase = angle[..., None] * k
        return torch.cat((phase.cos(), phase.sin()), -1)  # [b, n, 2 waves]

    def draw(self, size: int, random: torch.Generator) -> Batch:
        angle = 2 * math.pi * torch.rand(size, self.seen + self.asks, generator=random)
        # Heights sum to less than 1, so that the radius stays above 0.
        heights = 2 * torch.rand(size, 2 * self.waves, 1, generator=random) - 1
        radius = 1 + self._waves(angle) @ (0.9 * heights / (2 * self.waves))
        points = radius * torch.stack((angle.cos(), angle.sin()), -1)
        asked = torch.ones(size, self.asks, dtype=torch.bool)
        seen = points[:, : self.seen]
        turned = angle[:, self.seen :]
        x = torch.stack((turned.cos(), turned.sin()), -1)
        # The target is the offset of the curve from the circle.
        return Batch(x, points[:, self.seen :] - x, asked, seen)

    def oracle(self, batch: Batch) -> Tensor:
        assert batch.context is not None
        seen, x = batch.context.double(), batch.x.double()
        angle = torch.atan2(seen[..., 1], seen[..., 0])
        radius = seen.norm(dim=-1)
        waves = self._waves(angle)
        heights = torch.linalg.lstsq(waves, (radius - 1)[..., None]).solution
        asked = torch.atan2(x[..., 1], x[..., 0])
        return ((self._waves(asked) @ heights) * x).to(batch.y.dtype)


@register("forecast")
@dataclass(frozen=True, kw_only=True)
class Forecast(Task):
    """A sum of waves of unknown frequencies: predict the next value at each step (causal self).

    A series of `waves` waves follows a linear recurrence over its last 2 · waves values, whose
    weights must be inferred from its past. Only the second half of the steps is asked.

    >>> Forecast(length=24).batch(2).x.shape
    torch.Size([2, 24, 1])
    """

    length: int = 48
    waves: int = 2

    def __post_init__(self) -> None:
        need_integer("waves", self.waves)
        need_integer("length", self.length, 4 * self.waves + 2)

    @property
    def inputs(self) -> Kind:
        return Numbers(1)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        shape = (size, 1, self.waves)
        # Frequencies far enough apart for a recurrence to resolve.
        band = math.pi / (self.waves + 1)
        speed = band * (torch.arange(self.waves) + 0.3 + 0.6 * torch.rand(shape, generator=random))
        phase = 2 * math.pi * torch.rand(shape, generator=random)
        height = 0.5 + torch.rand(shape, generator=random)
        time = torch.arange(self.length + 1, dtype=torch.double)[None, :, None]
        series = (height * (speed.double() * time + phase).sin()).sum(-1, keepdim=True)
        asked = (torch.arange(self.length) >= self.length // 2).expand(size, -1).clone()
        return Batch(series[:, :-1].float(), series[:, 1:].float(), asked)

    def oracle(self, batch: Batch) -> Tensor:
        series, order = batch.x[..., 0].double(), 2 * self.waves
        answers = torch.zeros_like(series)
        for i in range(self.length // 2, self.length):
            past = series[:, : i + 1].unfold(1, order + 1, 1)  # [b, windows, order + 1]
            weights = torch.linalg.lstsq(past[..., :-1], past[..., -1:]).solution
            answers[:, i] = (series[:, i - order + 1 : i + 1, None] * weights).sum((1, 2))
        found: Tensor = answers[..., None].to(batch.y.dtype)
        return found
