"""Nearest neighbor: attention must be sharp, and sharper the more points there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.method import method
from regard.tasks.base import Batch, Kind, Numbers, Task, need_integer
from regard.tasks.registry import register


@method("rank_vs_heads")
@register("nearest")
@dataclass(frozen=True, kw_only=True)
class Nearest(Task):
    """Points on a sphere, and a query: return the point nearest to it.

    One head with scores q·k at a low temperature solves it, if its rank is `width`. More points
    need a lower entropy: this stresses layers whose entropy collapses, and layers that cannot be
    sharp.

    >>> Nearest(points=5, width=3).batch(2).context.shape
    torch.Size([2, 5, 3])
    """

    patterns = ("nc",)
    width: int = 16
    points: int = 8
    asks: int = 8

    def __post_init__(self) -> None:
        need_integer("width", self.width, 2)
        need_integer("points", self.points)
        need_integer("asks", self.asks)

    @property
    def inputs(self) -> Kind:
        return Numbers(self.width)

    @property
    def contexts(self) -> Kind:
        return Numbers(self.width)

    @property
    def longest(self) -> int:
        return max(self.points, self.asks)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        points, queries = (
            torch.nn.functional.normalize(torch.randn(size, n, self.width, generator=random), dim=2)
            for n in (self.points, self.asks)
        )
        asked = torch.ones(size, self.asks, dtype=torch.bool)
        batch = Batch(queries, queries, asked, points)
        return Batch(queries, self.oracle(batch), asked, points)

    def oracle(self, batch: Batch) -> Tensor:
        assert batch.context is not None
        best = (batch.x @ batch.context.mT).argmax(2)
        return batch.context.gather(1, best[..., None].expand(-1, -1, self.width))
