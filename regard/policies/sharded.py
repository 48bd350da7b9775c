"""Policies over blocks of a text: S2 divides them among heads, MoBA lets queries choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.core.support import Blocks, Causal, PerHead, Sinks, Strided, Support
from regard.layers.block_routing import routed
from regard.models.site import Sites
from regard.policies.base import Step
from regard.policies.budget import Budget
from regard.policies.caching import causal_only
from regard.policies.kinds import EvictAtSteps, Select
from regard.policies.registry import register
from regard.policies.scoring import rank_of
from regard.policies.tiling import density
from regard.run.executor import Answer

if TYPE_CHECKING:
    from regard.models.cache import KeyLayer


def shard(head: int, stride: int, local: int, block: int) -> Support:
    """Return what a head attends to: the last `local` blocks, every `stride`-th, and the first.

    >>> from regard.core.support import Causal
    >>> print(shard(1, stride=3, local=1, block=1).matrix(6)[0, 0].int())
    tensor([[1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 0, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [1, 1, 0, 0, 1, 1]], dtype=torch.int32)
    """
    own = Strided(stride, head % stride, block)
    return Causal() & (Blocks(block, back=local - 1) | own | Sinks(block))


@register("s2", "sharded")
@method("s2_attention", call='from regard.policies import policy; policy("s2")')
@dataclass
class Sharded(EvictAtSteps, Select):
    """Let each key head keep the newest blocks and a share of the others, different for each head.

    With a query in block i, head h attends to block j if i - j < `local`, if j = h (mod stride), or
    if j is the first; stride = 1 / `keep`, rounded up. With enough heads, every block is kept by
    some head. The layers in `dense` keep everything, as the authors advise for one in six.
    (S2-Attention, Lin et al. 2024, which trains models this way)
    """

    columns: ClassVar[str] = "blocks"
    what: ClassVar[str] = "evicts"
    block: int = 64
    local: int = 2
    dense: tuple[int, ...] = ()

    def begin(self, model: Any, sites: Sites, budget: Budget) -> None:
        """Check the settings."""
        super().begin(model, sites, budget)
        for name in ("block", "local"):
            if getattr(self, name) < 1:
                fail(ValueRangeError, name, getattr(self, name), "at least 1", "take one more")
        self.budget.need_share("the blocks")

    def supports(self, heads: int) -> list[Support]:
        """Return what each key head may attend to."""
        stride = math.ceil(1 / self.budget.need_share("the blocks") - 1e-9)
        return [shard(h, stride, self.local, self.block) for h in range(heads)]

    def _idle(self, step: Step) -> bool:
        return self.budget.whole or step.site.layer in self.dense

    def select(self, step: Step) -> Call:
        """Mask a prompt; at a single query the memory holds only what it may attend to."""
        call = step.call
        if self._idle(step) or step.n == 1:
            return call
        own = self.supports(call.g)
        heads = PerHead(tuple(own[h * call.g // call.h] for h in range(call.h)))
        return call.replace(rule=call.rule.replace(support=call.rule.support & heads))

    def score(self, step: Step) -> Tensor:
        """Score 1 where a later query may attend to a key."""
        at = step.positions
        needed = torch.stack([
            one.horizon(step.seen).holds(at[:, h].clamp(min=0))
            for h, one in enumerate(self.supports(step.call.g))
        ], 1)  # fmt: skip
        return (needed & (at >= 0)).float()

    def slots(self, step: Step, spare: float = 0.0) -> Tensor | None:
        """Keep what a later query may attend to, and the first `sinks` tokens of each row."""
        if self._idle(step):
            return None
        at = step.positions
        needed = (self.score(step) > 0) | ((rank_of(at) < self.sinks) & (at >= 0))
        if bool(needed.all()):
            return None
        return torch.where(needed, torch.arange(needed.shape[2], device=needed.device), -1)

    def due(self, layer: KeyLayer) -> bool:
        """Act at every step: a block may have left the horizon."""
        return not self.budget.whole


@register("moba")
@dataclass
class RoutedPrompt(Select):
    """Let each query of a prompt attend to its own block and those whose mean key matches best.

    Like the layer `moba`: blocks are scored by q_i . mean(k), with as many per query as give a
    share `keep` of the causal pairs. It suits models trained with MoBA or with full attention;
    decoding is dense. (MoBA, Lu et al. 2025)
    """

    what: ClassVar[str] = "prompt"
    columns: ClassVar[str] = "blocks"
    needs_cache: ClassVar[bool] = False
    block: int = 64
    # Prompts with fewer tiles than this are dense.
    least: int = 4

    def can(self, model: Any, sites: Sites) -> Answer:
        """Accept causal self-attention only."""
        return causal_only(sites)

    def select(self, step: Step) -> Call:
        """Choose blocks for each query."""
        call = step.call
        moved = call.m != step.seen or call.rule.offset + call.n != call.m
        if self.budget.whole or moved or call.n < self.least * self.block:
            return call
        tiles = -(-call.m // self.block)
        count = max(
            2, round(tiles * (1 - (1 - density(self.budget, self.token_bytes, call)) ** 0.5))
        )
        chosen = routed(call, self.block, count)
        return call.replace(rule=call.rule.replace(support=call.rule.support & chosen))
