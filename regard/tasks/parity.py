"""Parity, where the next bit is found by position, by content, or by neither."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.method import method
from regard.tasks.base import Batch, Kind, Task, Tokens, distinct, integer, integers, need_integer
from regard.tasks.registry import register

# Tokens 0 and 1 are bits; then GO and, from MARKERS on, marker words.
GO, MARKERS = 2, 3


@dataclass(frozen=True, kw_only=True)
class _Parity(Task):
    """Bits, one length per batch from `least` to `length`; tested on twice as many too.

    A subclass writes the text of some bits, and marks the positions to be predicted.
    """

    whole_rows: ClassVar[bool] = True
    length: int = 12
    least: int = 1

    def __post_init__(self) -> None:
        need_integer("length", self.length, 1)
        need_integer("least", self.least, 1, self.length)

    @property
    def inputs(self) -> Kind:
        return Tokens(MARKERS)

    @property
    def longest(self) -> int:
        return 4 * self.length * 2 + 1

    @property
    def chance(self) -> float:
        """The probability of guessing every step of a row."""
        sizes = range(self.least, self.length + 1)
        return sum(0.5 ** self.steps(n) for n in sizes) / len(sizes)

    def steps(self, n: int) -> int:
        """Return the number of answers in a row of n bits."""
        return n

    def text(self, bits: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Write bits [b, n] as a text [b, t], and mark which positions are answers [t]."""
        raise NotImplementedError

    def draw(self, size: int, random: torch.Generator) -> Batch:
        n = integer(self.least, self.length, random)
        text, answers = self.text(integers(0, 2, (size, n), random), random)
        # Each position is asked for the next token.
        return Batch(text[:, :-1], text[:, 1:], answers[1:].expand(size, -1).clone())

    def bits(self, x: Tensor) -> Tensor:
        """Read the bits [b, n] from a text [b, t]."""
        raise NotImplementedError

    def oracle(self, batch: Batch) -> Tensor:
        parity = self.bits(batch.x).cumsum(1) % 2
        answers = torch.zeros_like(batch.y)
        if int(batch.asked[0].sum()) == 1:
            parity = parity[:, -1:]
        answers[batch.asked] = parity.flatten()
        return answers

    def tests(self) -> dict[str, Task]:
        longer = {
            f"{n} bits": replace(self, least=n, length=n) for n in (self.length, 2 * self.length)
        }
        return {self.name: self, **(longer if self.least < self.length else {})}


def _before_go(x: Tensor) -> Tensor:
    return x[:, : int((x[0] == GO).nonzero()[0])]


@register("parity")
@dataclass(frozen=True, kw_only=True)
class Parity(_Parity):
    """Bits, then their parity.

    >>> Parity(least=3, length=3).batch(1).x.shape
    torch.Size([1, 4])
    """

    def steps(self, n: int) -> int:
        return 1

    def text(self, bits: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        go, parity = torch.full_like(bits[:, :1], GO), bits.sum(1, keepdim=True) % 2
        text = torch.cat((bits, go, parity), 1)
        return text, torch.arange(text.shape[1]) == text.shape[1] - 1

    def bits(self, x: Tensor) -> Tensor:
        return _before_go(x)


@register("parity_scratchpad")
@dataclass(frozen=True, kw_only=True)
class ParityScratchpad(_Parity):
    """Bits, then the running parities one by one: bit i must be found by its position.

    >>> ParityScratchpad(least=3, length=3).batch(1).x.shape
    torch.Size([1, 6])
    """

    def text(self, bits: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        go, parities = torch.full_like(bits[:, :1], GO), bits.cumsum(1) % 2
        text = torch.cat((bits, go, parities), 1)
        return text, torch.arange(text.shape[1]) > bits.shape[1]

    def bits(self, x: Tensor) -> Tensor:
        return _before_go(x)


@register("parity_interleaved")
@dataclass(frozen=True, kw_only=True)
class ParityInterleaved(_Parity):
    """Each bit is followed by the parity so far: no lookup is needed.

    >>> ParityInterleaved(least=3, length=3).batch(1).x.shape
    torch.Size([1, 5])
    """

    def text(self, bits: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        text = torch.stack((bits, bits.cumsum(1) % 2), 2).flatten(1)
        return text, torch.arange(text.shape[1]) % 2 == 1

    def bits(self, x: Tensor) -> Tensor:
        return x[:, ::2]


@method("random_access_parity")
@register("parity_mnemonics")
@dataclass(frozen=True, kw_only=True)
class ParityMnemonics(_Parity):
    """A random word before each bit and again before its step: bit i is found by content.

    Words are different within a row. With `aligned=False` the steps have other words than the bits,
    so that a bit can be found by position alone.

    >>> ParityMnemonics(least=3, length=3).batch(1).x.shape
    torch.Size([1, 12])
    """

    words: int = 96
    aligned: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        need_integer("words", self.words, 4 * self.length)

    @property
    def inputs(self) -> Kind:
        return Tokens(MARKERS + self.words)

    def text(self, bits: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        n = bits.shape[1]
        words = MARKERS + distinct(2 * n, self.words, len(bits), random)
        repeated = words[:, :n] if self.aligned else words[:, n:]
        given = torch.stack((words[:, :n], bits), 2).flatten(1)
        steps = torch.stack((repeated, bits.cumsum(1) % 2), 2).flatten(1)
        text = torch.cat((given, torch.full_like(bits[:, :1], GO), steps), 1)
        at = torch.arange(text.shape[1])
        return text, (at > 2 * n) & (at % 2 == 0)

    def bits(self, x: Tensor) -> Tensor:
        return _before_go(x)[:, 1::2]

    def tests(self) -> dict[str, Task]:
        longer = {
            f"{n} bits": replace(self, least=n, length=n)
            for n in (self.length, 2 * self.length) if 4 * n <= self.words
        }  # fmt: skip
        return {self.name: self, **(longer if self.least < self.length else {})}
