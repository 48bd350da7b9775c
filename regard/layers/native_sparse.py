"""Native sparse attention: compressed blocks, selected blocks, and a window (NSA)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.parts import choose_tiles, mixed, pooled
from regard.core.rule import Rule
from regard.core.support import Causal, Tiles, Window
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.block_routing import CAUSAL_BLOCKS
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register
from regard.run.api import attend


@register("native_sparse_attention")
class NativeSparseAttention(Attention):
    """Three attentions of each query, mixed by gates: to block means, top blocks and a window.

    - *compressed*: mean keys and values of the past blocks that are whole
    - *selected*: the query's own block, the one before, the first, and the blocks of the largest
      compressed weight (mean over the query heads of a key head), `blocks` in all
    - *window*: the last `window` tokens

    `out = sum_c sigmoid(x W_c) out_c`, a gate for each head and token. Selection has no gradient;
    its scores learn through the compressed branch. All three branches read the same keys.

    >>> layer = NativeSparseAttention(32, heads=4, kv_heads=2, block=4, blocks=3, window=4)
    >>> layer(torch.randn(1, 20, 32)).shape
    torch.Size([1, 20, 32])
    """

    can: ClassVar[Capabilities] = replace(CAUSAL_BLOCKS, meta=False, vmap=False)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "block": 4, "blocks": 3, "window": 4}
    tiny_tokens: ClassVar[int] = 26

    def __init__(
        self, dim: int, heads: int, *, block: int = 64, blocks: int = 16, window: int = 512,
        causal: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "support")
        need_size("block", block)
        need_size("blocks", blocks, 3)
        need_size("window", window)
        super().__init__(dim, heads, causal=causal, **settings)
        self.takes_no_bias_of_position("block means have no position")
        self.block, self.blocks, self.window = block, blocks, window
        self.to_gates = nn.Linear(dim, 3 * heads)

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Run the three branches, and mix."""
        k, v = pooled(call.k, self.block), pooled(call.v, self.block)
        chosen = self.chosen(call, k)
        rule = call.rule
        outs = (
            self.compressed(call, k, v),
            self.attend(call.replace(rule=rule.replace(support=rule.support & chosen))),
            self.attend(
                call.replace(rule=rule.replace(support=rule.support & Window(self.window)))
            ),
        )
        gates = self.to_gates(input.x).sigmoid().transpose(1, 2)
        return mixed(outs, gates.chunk(3, 1))

    def ends(self, blocks: int, device: torch.device) -> Tensor:
        """Return the positions of the last tokens of blocks, [blocks]."""
        return (torch.arange(blocks, device=device) + 1) * self.block - 1

    def compressed(self, call: Call, k: Tensor, v: Tensor) -> Tensor:
        """Attend to means k, v [b, g, t, .] of blocks that have ended: [b, h, n, e]."""
        rule = Rule(Causal(), call.rule.score, call.rule.weigh, call.rule.offset)
        at = self.ends(k.shape[2], k.device).expand(call.b, -1)
        seen: Tensor = attend(call.q, k, v, rule, k_positions=at, dropout=call.dropout)
        return seen

    @torch.no_grad()
    def chosen(self, call: Call, k: Tensor) -> Tiles:
        """Select the blocks of each query, by means k [b, g, t, d] of all blocks."""
        q, k_all = call.q, expand_heads(k, call.h)
        # Blocks are selected by products even where the score is none (additive, say).
        q, k_all, scale = call.rule.score.match.prepare(q, k_all) or (q, k_all, call.d**-0.5)
        places = torch.arange(call.n, device=k.device)[:, None] + call.rule.offset
        number = torch.arange(k.shape[2], device=k.device)
        own = torch.div(places, self.block, rounding_mode="floor")
        ended = self.ends(k.shape[2], k.device) <= places
        weights = (scale * q @ k_all.mT).masked_fill(~ended, -torch.inf).softmax(-1)
        worth = weights.nan_to_num().unflatten(1, (call.g, -1)).mean(2)
        always = (number == own) | (number == own - 1) | (number == 0)
        worth = expand_heads(worth.masked_fill(always, torch.inf), call.h)
        before = Causal().shift(call.rule.offset)
        found = choose_tiles(worth, self.blocks, (1, self.block), within=before)
        return found.replace(start=call.rule.offset)
