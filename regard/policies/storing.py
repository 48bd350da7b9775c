"""Policies that store keys and values compressed, or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.memories.low_rank import LowRank
from regard.memories.mapped import Mapped
from regard.memories.quantized import Quantized as QuantizedStore
from regard.models.site import Site
from regard.policies.kinds import Store
from regard.policies.registry import register


@register("quantized", "kivi")
@dataclass
class Quantized(Store):
    """Store keys and values in 8, 4 or 2 bits: keys by channel, values by token.

    x = low + code * step over `group` tokens of a channel (keys), or over the channels of a token
    (values); the newest `residual` tokens stay exact. (KIVI, Liu et al. 2024)
    """

    columns: ClassVar[str] = "groups of tokens"
    bits: int = 4
    group: int = 32
    residual: int = 32

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory:
        """Keep packed codes."""
        settings = (self.group, self.residual)
        return Kept(
            lambda: QuantizedStore(self.bits, "channel", *settings),
            lambda: QuantizedStore(self.bits, "token", *settings),
        )


@register("low_rank")
@dataclass
class LowRankKeys(Store):
    """Store keys and values as coefficients on the main directions of the prompt.

    x = c B, where B are the first `rank` right singular vectors of the first tokens of each head;
    the newest `residual` tokens stay exact. `rank` is a share of the head size.
    """

    rank: float = 0.5
    residual: int = 32

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory:
        """Keep coefficients."""
        rank = max(1, round(self.rank * (site.head_size or 64)))
        return Kept(lambda: LowRank(rank, self.residual))


@register("offloaded")
@dataclass
class Offloaded(Store):
    """Store keys and values in memory-mapped files: the operating system reads what is used.

    Results are exact and no keys are held in memory; a step reads every key from the files, or from
    the page cache. `folder` defaults to the temporary folder of the system.
    """

    folder: str | None = None

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory:
        """Keep files."""
        return Kept(lambda: Mapped(self.folder))
