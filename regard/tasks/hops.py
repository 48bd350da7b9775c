"""Needles that must be chained: a leads to b, b leads to c."""

from __future__ import annotations

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
    need_even,
    need_whole,
    next_after_match,
    some_of,
    whole,
)
from regard.tasks.registry import register


@method("longagent_needle_plus")
@register("hops")
@dataclass(frozen=True, kw_only=True)
class Hops(Task):
    """Pairs (a, b) lie among random words; from the last token one goes `hops` pairs on.

    With two hops the pairs (a, b) and (b, c) are told somewhere, and at the last a the answer is c.
    Other chains are told beside it, so that only the first name decides. Names are different and
    stand nowhere else.

    >>> batch = Hops(length=32, chains=2).batch(3)
    >>> bool((Hops(length=32, chains=2).oracle(batch)[:, -1] == batch.y[:, -1]).all())
    True
    """

    patterns = ("cs", "ns")
    names: int = 64
    words: int = 64
    length: int = 64
    hops: int = 2
    chains: int = 4

    def __post_init__(self) -> None:
        need_whole("hops", self.hops, 1)
        need_even("length", self.length)
        need_whole("chains", self.chains, 1, (self.length - 2) // 2 // self.hops)
        need_whole("names", self.names, self.chains * (self.hops + 1))
        need_whole("words", self.words, 1)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.names + self.words)

    @property
    def outputs(self) -> Kind:
        return Tokens(self.names)

    @property
    def chance(self) -> float:
        return 1 / self.names

    def draw(self, size: int, random: torch.Generator) -> Batch:
        names = some_of(self.chains * (self.hops + 1), self.names, size, random)
        chains = names.view(size, self.chains, self.hops + 1)
        pairs = torch.stack((chains[..., :-1], chains[..., 1:]), -1).flatten(1, 2)  # [b, pairs, 2]
        x = self.names + whole(0, self.words, (size, self.length), random)
        slots = (self.length - 2) // 2
        places = 2 * some_of(pairs.shape[1], slots, size, random)
        x.scatter_(1, places, pairs[..., 0]).scatter_(1, places + 1, pairs[..., 1])
        which = whole(0, self.chains, (size,), random)
        asked_chain = chains[torch.arange(size), which]
        x[:, -1] = asked_chain[:, 0]
        return asked_at_end(x, asked_chain[:, -1])

    def followed(self, batch: Batch, hops: int) -> Tensor:
        """Answer by following `hops` pairs from the question: what a solver of that depth says."""
        told, at = batch.x[:, :-1], batch.x[:, -1:]
        for _ in range(hops):
            # A name may end one pair and begin another; those that begin stand at even places.
            begins = (told[:, ::2] == at).to(torch.uint8).argmax(1, keepdim=True)
            at = told.gather(1, 2 * begins + 1)
        answers = torch.zeros_like(batch.y)
        answers[:, -1] = at[:, 0]
        return answers

    def oracle(self, batch: Batch) -> Tensor:
        return self.followed(batch, self.hops)

    def tests(self) -> dict[str, Task]:
        fewer = {f"{n} hops": replace(self, hops=n) for n in range(1, self.hops)}
        return {self.name: self, **fewer}


def seen_by_window(x: Tensor, width: int) -> Tensor:
    """Answer each place by recall, as a model does that sees the last `width` tokens alone.

    >>> seen_by_window(torch.tensor([[5, 7, 6, 8, 5]]), 3)[0, -1].item()
    -1
    """
    n = x.shape[1]
    near = torch.arange(n)[:, None] - torch.arange(n) < width
    later = torch.arange(n)[:, None] > torch.arange(n)
    same = (x[:, :, None] == x[:, None]) & near & later
    found = next_after_match(x)
    return torch.where(same.any(-1), found, -1)
