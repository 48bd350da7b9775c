"""Attention with learned relative positions: by offset, or by contextual count."""

from __future__ import annotations

from typing import Any, ClassVar

from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities
from regard.layers.positions import Cope, Shaw
from regard.layers.registry import register


@register("music_transformer_rel")
@method(
    "music_transformer_rel",
    call="import regard\n"
    'layer = regard.layer("music_transformer_rel", 512, heads=8, reach=1024, causal=True)',
)
class RelativeAttention(Attention):
    """Each head learns a vector for every distance, dotted with the query (Music Transformer).

    `s_ij = q_i (k_j + e_{j-i}) / sqrt(d)`, distances beyond `reach` sharing the last vector. Each
    query is multiplied with the table once and the products are looked up, so no tensor of
    n x n x d is built.

    >>> import torch
    >>> RelativeAttention(32, heads=4, reach=16, causal=True)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(cross=False, multihead_weights=True)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "reach": 8}

    def __init__(self, dim: int, heads: int, *, reach: int, **settings: Any) -> None:
        self.decides(settings, "position")
        need_size("reach", reach)
        super().__init__(dim, heads, **settings)
        self.position = Shaw(self.head_dim, reach, heads=heads)


@register("cope")
@method("cope", call='import regard\nlayer = regard.layer("cope", 512, heads=8, furthest=64)')
class ContextualPositions(Attention):
    """Contextual positions: distance counts the tokens that the query gates (CoPE).

    `p_ij = sum_{t=j..i} sigmoid(q_i k_t)`, and the score gains `q_i e[p_ij]`, interpolated between
    the learned vectors of whole numbers, up to `furthest`.

    >>> import torch
    >>> ContextualPositions(32, heads=4, furthest=16)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, multihead_weights=True
    )
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "furthest": 8}

    def __init__(
        self, dim: int, heads: int, *, furthest: int = 64, causal: bool = True, **settings: Any
    ) -> None:
        self.decides(settings, "position")
        need_size("furthest", furthest)
        super().__init__(dim, heads, causal=causal, **settings)
        self.position = Cope(self.head_dim, furthest)
