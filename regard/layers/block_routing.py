"""Queries that select blocks of keys: by their means (MoBA), or by a landmark token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.parts import choose_tiles, pooled
from regard.core.score import Landmarks, Score
from regard.core.support import Causal, Tiles
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register

CAUSAL_BLOCKS = Capabilities(
    bidirectional=False, cross=False, left_padding=False, documents=False, multihead_weights=True
)


@register("moba")
@method("moba", call='import regard\nlayer = regard.layer("moba", 512, heads=8, block=64)')
class BlockRouting(Attention):
    """Each query attends to its own block and the blocks whose mean key scores best (MoBA).

    Of `blocks` blocks of `block` keys one is the query's own, causal inside; the others are past
    ones with the largest `q_i mean(k)`. Selection has no gradient and no parameters, so the layer
    can be exchanged for full attention at any time. As in the paper, of language models, blocks are
    counted from the first position, so text begins there, and there is no context to attend to.

    >>> BlockRouting(32, heads=4, block=4, blocks=2)(torch.randn(1, 20, 32)).shape
    torch.Size([1, 20, 32])
    """

    can: ClassVar[Capabilities] = replace(CAUSAL_BLOCKS, meta=False, vmap=False)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "block": 4, "blocks": 2}

    def __init__(
        self, dim: int, heads: int, *, block: int = 64, blocks: int = 4, causal: bool = True,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "support")
        need_size("block", block)
        need_size("blocks", blocks)
        super().__init__(dim, heads, causal=causal, **settings)
        self.block, self.blocks = block, blocks

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Select blocks, and attend to them causally."""
        chosen = routed(call, self.block, self.blocks)
        rule = call.rule.replace(support=call.rule.support & chosen)
        return super().look(call.replace(rule=rule), input)


@torch.no_grad()
def gates(call: Call, block: int) -> Tensor:
    """Score blocks of keys for each query: [b, h, n, blocks]; its own block scores infinite."""
    scores = call.q @ expand_heads(pooled(call.k, block), call.h).mT
    places = torch.arange(call.n, device=call.q.device)[:, None] + call.rule.offset
    own = torch.div(places, block, rounding_mode="floor")
    return scores.masked_fill(own == torch.arange(scores.shape[-1], device=own.device), torch.inf)


def routed(call: Call, block: int, count: int) -> Tiles:
    """Select for each query its own block and the best earlier ones, `count` in all."""
    before = Causal().shift(call.rule.offset)
    chosen = choose_tiles(gates(call, block), count, (1, block), within=before)
    return chosen.replace(start=call.rule.offset)


@register("landmark_attention")
@method(
    "landmark_attention",
    call='import regard\nlayer = regard.layer("landmark_attention", 512, heads=8, block=51)',
)
class LandmarkAttention(Attention):
    """A landmark token represents each block: queries weigh landmarks, then the keys behind them.

    Tokens come in blocks of `block`, a landmark token at the end of each (see `with_landmarks`).
    One softmax is over the query's own block and earlier landmarks; the weight of a landmark is
    divided among the other keys of its block. `retrieve` reads only that many of the best blocks.

    >>> LandmarkAttention(32, heads=4, block=5, retrieve=2)(torch.randn(1, 20, 32)).shape
    torch.Size([1, 20, 32])
    """

    can: ClassVar[Capabilities] = CAUSAL_BLOCKS
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "block": 5}

    def __init__(
        self, dim: int, heads: int, *, block: int = 51, retrieve: int | None = None,
        causal: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "support")
        super().__init__(dim, heads, causal=causal, **settings)
        self.landmarks = Landmarks(block, retrieve)

    def score(self) -> Score:
        """Group the softmax by blocks."""
        return super().score() >> self.landmarks


def with_landmarks(tokens: Tensor, block: int, landmark: int) -> Tensor:
    """Insert a landmark token after each `block - 1` tokens: [b, n] to [b, n + n // (block - 1)].

    >>> with_landmarks(torch.tensor([[1, 2, 3, 4, 5]]), block=3, landmark=0).tolist()
    [[1, 2, 0, 3, 4, 0, 5]]
    """
    need_size("block", block, 2)
    whole = tokens.shape[1] // (block - 1) * (block - 1)
    blocks = tokens[:, :whole].unflatten(1, (-1, block - 1))
    marks = torch.full_like(blocks[:, :, :1], landmark)
    return torch.cat((torch.cat((blocks, marks), 2).flatten(1), tokens[:, whole:]), 1)
