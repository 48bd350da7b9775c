"""Multi-hop retrieval: a leads to b, b leads to c."""

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
    answers_at_end,
    asked_at_end,
    distinct,
    integers,
    need_even,
    need_integer,
    next_after_match,
)
from regard.tasks.registry import register


@method("longagent_needle_plus")
@register("hops")
@dataclass(frozen=True, kw_only=True)
class Hops(Task):
    """Pairs (a, b) among random words; from the last token, follow `hops` pairs.

    With two hops the text holds the pairs (a, b) and (b, c), and after the final a the answer is c.
    Other chains are distractors. All names are different and occur nowhere else.

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
        need_integer("hops", self.hops, 1)
        need_even("length", self.length)
        need_integer("chains", self.chains, 1, (self.length - 2) // 2 // self.hops)
        need_integer("names", self.names, self.chains * (self.hops + 1))
        need_integer("words", self.words, 1)

    @property
    def inputs(self) -> Kind:
        return Tokens(self.names + self.words)

    @property
    def outputs(self) -> Kind:
        return Tokens(self.names)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        names = distinct(self.chains * (self.hops + 1), self.names, size, random)
        chains = names.view(size, self.chains, self.hops + 1)
        pairs = torch.stack((chains[..., :-1], chains[..., 1:]), -1).flatten(1, 2)  # [b, pairs, 2]
        x = self.names + integers(0, self.words, (size, self.length), random)
        slots = (self.length - 2) // 2
        places = 2 * distinct(pairs.shape[1], slots, size, random)
        x.scatter_(1, places, pairs[..., 0]).scatter_(1, places + 1, pairs[..., 1])
        which = integers(0, self.chains, (size,), random)
        asked_chain = chains[torch.arange(size), which]
        x[:, -1] = asked_chain[:, 0]
        return asked_at_end(x, asked_chain[:, -1])

    def followed(self, batch: Batch, hops: int) -> Tensor:
        """Answer by following `hops` pairs from the question, as a solver of that depth does."""
        text, at = batch.x[:, :-1], batch.x[:, -1:]
        for _ in range(hops):
            # A name may end one pair and begin another; first names have even positions.
            begins = (text[:, ::2] == at).to(torch.uint8).argmax(1, keepdim=True)
            at = text.gather(1, 2 * begins + 1)
        return answers_at_end(batch, at[:, 0])

    def oracle(self, batch: Batch) -> Tensor:
        return self.followed(batch, self.hops)

    def tests(self) -> dict[str, Task]:
        fewer = {f"{n} hops": replace(self, hops=n) for n in range(1, self.hops)}
        return {self.name: self, **fewer}


def seen_by_window(x: Tensor, width: int) -> Tensor:
    """Answer each position by recall within the last `width` tokens, -1 where there is no match.

    >>> seen_by_window(torch.tensor([[5, 7, 6, 8, 5]]), 3)[0, -1].item()
    -1
    """
    n = x.shape[1]
    near = torch.arange(n)[:, None] - torch.arange(n) < width
    later = torch.arange(n)[:, None] > torch.arange(n)
    same = (x[:, :, None] == x[:, None]) & near & later
    found = next_after_match(x)
    return torch.where(same.any(-1), found, -1)
