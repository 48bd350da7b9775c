"""Attention to some tokens directly, and to all others through summaries (Combiner)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.partial import merge
from regard.core.rule import Rule
from regard.core.support import Blocks, Causal
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register
from regard.run.api import attend, partial


@register("combiner")
@method("combiner", call='import regard\nlayer = regard.layer("combiner", 512, heads=8, block=32)')
class Combiner(Attention):
    """A query attends to its own block and a summary of each earlier one (Combiner, fixed blocks).

    One softmax is over the block's keys and the spans' `kbar = max k`; the value of a span is
    `vbar = softmax(qbar k) v` inside it, `qbar = max q`, the same for every later query. So every
    token is attended to, `p(j) = p(span) p(j | span)`, at n sqrt(n) for blocks of sqrt(n). A
    decoder keeps two vectors for each finished block, and the block it is in. Blocks are counted
    from the first position, where text begins; the paper has no cross-attention.

    >>> Combiner(32, heads=4, block=4)(torch.randn(1, 11, 32)).shape
    torch.Size([1, 11, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, left_padding=False, documents=False,
        multihead_weights=True,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "block": 4}

    def __init__(
        self, dim: int, heads: int, *, block: int = 32, causal: bool = True, **settings: Any
    ) -> None:
        self.decides(settings, "support", "weigh", "dropout")
        need_size("block", block)
        super().__init__(dim, heads, causal=causal, **settings)
        self.block = block
        self.takes_no_bias_of_position("summaries of blocks have no position")

    def spans(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Summarize whole blocks of q, k, v [b, h, n, d]: kbar and vbar [b, h, blocks, d]."""
        blocks = q.shape[2] // self.block
        if not blocks:
            return k[:, :, :0], v[:, :, :0]
        q, k, v = (
            x[:, :, : blocks * self.block].unflatten(2, (blocks, self.block)) for x in (q, k, v)
        )
        summary = q.amax(3).flatten(0, 1)[:, :, None]  # one query for each block
        read = attend(summary, k.flatten(0, 1), v.flatten(0, 1), self.score())
        return k.amax(3), read.unflatten(0, q.shape[:2])[:, :, :, 0]

    def compute_eagerly(self, input: LayerInput) -> Tensor:
        """Attend to the own block and to the spans before it, and merge."""
        memory, n = input.memory, input.x.shape[1]
        q = self.position.turn(self.normed_queries(input), input.positions)
        k, v = self.keys(input.x)
        k = self.position.turn(self.norm_k(k) if self._normed else k, input.positions)
        k, v = expand_heads(k, self.heads), expand_heads(v, self.heads)
        kbar, vbar = (x[:, :, :0] for x in (k, v))
        if memory is not None and memory.seen:
            before = memory.get("block")
            q, k, v = (torch.cat(pair, 2) for pair in zip(before, (q, k, v), strict=True))
            kbar, vbar = memory.get("spans")
        start = kbar.shape[2] * self.block
        new = self.spans(q, k, v)
        kbar, vbar = torch.cat((kbar, new[0]), 2), torch.cat((vbar, new[1]), 2)
        if memory is not None:
            done = new[0].shape[2] * self.block
            memory.keep("block", tuple(x[:, :, done:] for x in (q, k, v)))
            memory.keep("spans", (kbar, vbar))
        own = Rule(Causal() & Blocks(self.block), self.score())
        seen = partial(q, k, v, own)
        if kbar.shape[2]:
            # A span gets the position at which the next block begins: only later blocks see it.
            places = (torch.arange(kbar.shape[2], device=q.device) + 1) * self.block
            far = Rule(Causal(), self.score()).shift(start)
            seen = merge(seen, partial(q, kbar, vbar, far, k_positions=places))
        return self.mix(seen.out[:, :, -n:], input)
