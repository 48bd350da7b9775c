"""Attention whose weights are not normalized: sigmoid."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.method import method
from regard.core.weigh import Sigmoid, Weigh
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("sigmoid_attention")
@method(
    "sigmoid_attention",
    call='import regard\nlayer = regard.layer("sigmoid_attention", 512, heads=8, length=1024)',
)
class SigmoidAttention(Attention):
    """Each weight is the sigmoid of its own score: `y_i = sum_j sigmoid(s_ij + b) v_j`.

    `b = -log(length)`, so that at initialization weights sum to about 1 for sequences of that
    length. Queries and keys are normalized unless `qk_norm=None`; `hybrid_norm` also normalizes the
    heads' outputs, and `scale` is the initial value of a LayerScale.

    >>> SigmoidAttention(64, heads=8, length=256)(torch.randn(1, 5, 64)).shape
    torch.Size([1, 5, 64])
    """

    can: ClassVar[Capabilities] = Capabilities(multihead_weights=True)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "length": 24}

    def __init__(
        self, dim: int, heads: int, *, length: int, bias_of_scores: float | None = None,
        hybrid_norm: bool = False, scale: float | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "weigh")
        need_size("length", length)
        super().__init__(dim, heads, **{"qk_norm": nn.LayerNorm, **settings})
        self.bias_of_scores = -math.log(length) if bias_of_scores is None else bias_of_scores
        self.norm_out = nn.RMSNorm(self.value_dim) if hybrid_norm else nn.Identity()
        self.scale = None if scale is None else nn.Parameter(torch.full((dim,), scale))

    def weigh(self) -> Weigh:
        """Weigh each key by its own score."""
        return Sigmoid(self.bias_of_scores)

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Normalize and scale, where asked."""
        y = super().mix(self.norm_out(seen), input)
        return y if self.scale is None else y * self.scale
