"""Heads that attend to the recent past and their own shard of earlier tokens (S2)."""

from __future__ import annotations

from typing import Any, ClassVar

from regard.core.errors import ShapeError, fail
from regard.core.method import method
from regard.core.support import Blocks, Causal, PerHead, Sinks, Strided, Support
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities
from regard.layers.registry import register


@register("s2_attention")
@method(
    "s2_attention",
    call='import regard\nlayer = regard.layer("s2_attention", 512, heads=8, stride=8, local=8)',
)
class ShardedAttention(Attention):
    """Each head attends to the last blocks and every `stride`-th earlier one, shifted by head (S2).

    Key block j of query block i is visible if `i - j < local` or `(j + o_h) mod stride = 0`, with
    `o_h = h mod stride` alike for the heads that share keys; together the heads cover the past.
    Decoding keeps for each key head its shard and the recent blocks, `m / stride + local block`
    keys. With `sinks` every head attends to the first block.

    >>> import torch
    >>> layer = ShardedAttention(32, heads=4, block=4, stride=2, local=1)
    >>> layer(torch.randn(1, 24, 32)).shape
    torch.Size([1, 24, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, left_padding=False, documents=False,
        multihead_weights=True,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "block": 3, "stride": 2, "local": 2}

    def __init__(
        self, dim: int, heads: int, *, block: int = 64, stride: int = 8, local: int = 8,
        sinks: bool = False, offsets: list[int] | None = None, causal: bool = True,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "support")
        for name, x in (("block", block), ("stride", stride), ("local", local)):
            need_size(name, x)
        super().__init__(dim, heads, causal=causal, **settings)
        share = heads // self.kv_heads
        self.offsets = offsets or [(h // share) % stride for h in range(heads)]
        if len(self.offsets) != heads:
            fail(
                ShapeError, "offsets", f"{len(self.offsets)}", f"one for each of {heads} heads",
                "leave them out for h mod stride",
            )  # fmt: skip
        recent = Blocks(block, back=local - 1) | (Sinks(block) if sinks else Blocks(block))

        def seen(offset: int) -> Support:
            return Causal() & (recent | Strided(stride, (-offset) % stride, block))

        self._support = PerHead(tuple(seen(offset) for offset in self.offsets))
