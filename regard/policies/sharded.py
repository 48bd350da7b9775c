"""Policies that cut a text into blocks: heads that share them out, and queries that choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.method import method
from regard.core.support import Blocks, Causal, PerHead, Sinks, Strided, Support
from regard.layers.block_routing import routed
from regard.models.site import Sites
from regard.policies.base import Policy, Step
from regard.policies.budget import Budget
from regard.policies.prompts import SparsePrompt
from regard.policies.registry import register


def shard(head: int, stride: int, local: int, block: int) -> Support:
    """What one head meets: the last `local` blocks, every `stride`-th from its own on, the first.

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
class Sharded(Policy):
    """Let each key head keep the newest blocks and a share of the others, each head another.

    Head h meets block j of a query in block i if i - j < `local`, if j = h (mod stride), or if j is
    the first; stride = 1 / `keep`, rounded up. Heads enough, all blocks are kept by some head. The
    layers named in `dense` keep everything, as the authors advise for one in six.
    (S2-Attention, Lin et al. 2024, where models are trained so)
    """

    columns: ClassVar[str] = "blocks"
    what: ClassVar[str] = "evicts"
    every_step = True
    block: int = 64
    local: int = 2
    dense: tuple[int, ...] = ()

    def begin(self, model: Any, sites: Sites, budget: Budget) -> None:
        """Check the settings."""
        super().begin(model, sites, budget)
        for name in ("block", "local"):
            if getattr(self, name) < 1:
                fail(ValueRangeError, name, getattr(self, name), "at least 1", "take one more")
        if self.budget.share is None:
            fail(
                CapabilityError, "keep", f"{self.budget}", "a share of the blocks",
                "pass keep=0.25, say: what a head keeps grows with the text",
            )  # fmt: skip

    def supports(self, heads: int) -> list[Support]:
        """Return what each key head may attend to."""
        assert self.budget.share is not None
        stride = math.ceil(1 / self.budget.share - 1e-9)
        return [shard(h, stride, self.local, self.block) for h in range(heads)]

    def _idle(self, step: Step) -> bool:
        return self.budget.whole or step.site.layer in self.dense

    def select(self, step: Step) -> Call:
        """Mask a prompt; a single query finds only what it may meet."""
        call = step.call
        if self._idle(step):
            return call
        own = self.supports(call.g)
        step.pairs = self.pairs(step, own)
        if step.n == 1:
            return call
        heads = PerHead(tuple(own[h * call.g // call.h] for h in range(call.h)))
        return call.replace(rule=call.rule.replace(support=call.rule.support & heads))

    def slots(self, step: Step) -> Tensor | None:
        """Keep what a later query can meet."""
        if self._idle(step):
            return None
        at = step.positions
        needed = torch.stack([
            one.horizon(step.seen).holds(at[:, h].clamp(min=0))
            for h, one in enumerate(self.supports(step.call.g))
        ], 1) & (at >= 0)  # fmt: skip
        if bool(needed.all()):
            return None
        line = torch.arange(at.shape[2], device=at.device)
        return torch.where(needed, line, -1)

    def pairs(self, step: Step, own: list[Support]) -> float:
        """Pairs of one head and row on average: whole blocks before a query's own, and its own."""
        at, size = step.positions, self.block
        blocks = -(-step.seen // size)
        held = torch.zeros(step.call.b, step.call.g, blocks + 1, device=at.device)
        number = torch.where(at >= 0, torch.div(at, size, rounding_mode="floor"), blocks)
        held.scatter_add_(2, number, torch.ones_like(number, dtype=held.dtype))
        i = torch.arange(step.seen - step.n, step.seen, device=at.device)
        mine, j = torch.div(i, size, rounding_mode="floor"), torch.arange(blocks, device=at.device)
        zero = i.new_zeros(1)
        total = float((i % size + 1).sum())
        for h, one in enumerate(own):
            met = one.allows(zero, zero, i[:, None], j * size) & (j < mine[:, None])
            total += float((held[:, h, None, :blocks] * met).sum()) / (len(own) * step.call.b)
        return total


@register("moba")
@dataclass
class RoutedPrompt(SparsePrompt):
    """Let each query of a prompt meet its own block, and those whose mean key it matches best.

    As the layer `moba`: blocks by q_i . mean(k), as many for each query as give a share `keep` of
    the causal pairs. Models trained so, or for full attention, take it alike; steps after the
    prompt are dense. (MoBA, Lu et al. 2025)
    """

    def select(self, step: Step) -> Call:
        """Choose blocks for each query."""
        call = step.call
        moved = call.m != step.seen or call.rule.offset + call.n != call.m
        if self.budget.whole or moved or call.n < self.least * self.block:
            return call
        tiles = -(-call.m // self.block)
        count = max(2, round(tiles * (1 - (1 - self.density(call)) ** 0.5)))
        chosen = routed(call, self.block, count)
        i = torch.arange(call.n, device=call.q.device) + call.rule.offset
        past = chosen.chosen.sum(-1) - 1
        step.pairs = float((past * self.block + i % self.block + 1).sum(-1).float().mean())
        return call.replace(rule=call.rule.replace(support=call.rule.support & chosen))


__all__ = ["RoutedPrompt", "Sharded", "shard"]
