"""Query heads that share keys and values: multi-query and grouped-query attention."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from regard.core.errors import ShapeError, fail
from regard.core.method import method
from regard.layers.attention import Attention
from regard.layers.base import Can
from regard.layers.registry import register


@register("gqa")
class GroupedQuery(Attention):
    """Groups of query heads share a key head; `kv_heads` counts the groups.

    >>> import torch
    >>> GroupedQuery(64, heads=8, kv_heads=2)(torch.randn(1, 5, 64)).shape
    torch.Size([1, 5, 64])
    """

    can: ClassVar[Can] = Can()

    def __init__(self, dim: int, heads: int, *, kv_heads: int | None = None, **settings: Any):
        groups = max(heads // 4, 1) if kv_heads is None else kv_heads
        super().__init__(dim, heads, kv_heads=groups, **settings)


@register("mqa")
@method("mqa", call='import regard\nlayer = regard.layer("mqa", 512, heads=8, causal=True)')
class MultiQuery(Attention):
    """All query heads share one key and one value head.

    >>> MultiQuery(64, heads=8).to_k.out_features
    8
    """

    can: ClassVar[Can] = Can()

    def __init__(self, dim: int, heads: int, **settings: Any):
        super().__init__(dim, heads, kv_heads=1, **settings)


def pooled_heads(weight: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Average the key (or value) weights [h d, ...] of neighboring heads: [g d, ...].

    >>> import torch
    >>> pooled_heads(torch.tensor([[1.0], [3.0]]), heads=2, kv_heads=1)
    tensor([[2.]])
    """
    if heads % kv_heads:
        fail(ShapeError, "kv_heads", kv_heads, f"a divisor of {heads}", "pool whole groups")
    pooled: Tensor = weight.unflatten(0, (kv_heads, heads // kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled
