"""Query heads that share keys and values: multi-query and grouped-query attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.errors import ShapeError, fail
from regard.core.method import method
from regard.layers.attention import Attention, split
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("gqa")
class GroupedQuery(Attention):
    """Groups of query heads share a key head; `kv_heads` counts the groups.

    >>> import torch
    >>> GroupedQuery(64, heads=8, kv_heads=2)(torch.randn(1, 5, 64)).shape
    torch.Size([1, 5, 64])
    """

    can: ClassVar[Capabilities] = Capabilities()

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

    can: ClassVar[Capabilities] = Capabilities()

    def __init__(self, dim: int, heads: int, **settings: Any):
        self.decides(settings, "kv_heads")
        super().__init__(dim, heads, kv_heads=1, **settings)


@register("mhe")
@method("mhe", call='import regard\nlayer = regard.layer("mhe", 512, heads=8, causal=True)')
class HeadEmbeddings(MultiQuery):
    """One query, key and value projection for all heads, each scaled by its factors (MHE-MUL).

    `q_i = q (1 + a_i)`, and so for k and v. Only the shared key and value are kept: the factors of
    keys are folded into the queries, those of values into the outputs.

    >>> layer = HeadEmbeddings(64, heads=8)
    >>> sum(x.numel() for name, x in layer.named_parameters() if name != "to_out.weight")
    1728
    """

    def make_projections(self, bias: bool) -> None:
        """Build projections for a single head, and an embedding for each head."""
        super().make_projections(bias)
        self.to_q = nn.Linear(self.dim, self.head_dim, bias)
        self.of_query, self.of_key, self.of_value = (
            nn.Parameter(0.02 * torch.randn(self.heads, 1, size))
            for size in (self.head_dim, self.head_dim, self.value_dim)
        )

    def queries(self, x: Tensor) -> Tensor:
        """Scale the one query for each head: [b, h, n, d]."""
        return split(self.to_q(x), 1) * (1 + self.of_query) * (1 + self.of_key)

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Scale the output of each head."""
        return super().mix(seen * (1 + self.of_value), input)


@register("mhe_add")
class AddedHeadEmbeddings(MultiQuery):
    """One query, key and value projection for all heads, each with vectors added (MHE-ADD).

    `q_i = q + a_i`, `v_i = v + c_i`. The paper's third vector, added to keys, adds the same to
    every score of a row, which softmax cannot see: it is left out.

    >>> AddedHeadEmbeddings(64, heads=8).of_query.shape
    torch.Size([8, 1, 8])
    """

    def make_projections(self, bias: bool) -> None:
        """Build projections for a single head, and vectors for each head."""
        super().make_projections(bias)
        self.to_q = nn.Linear(self.dim, self.head_dim, bias)
        self.of_query = nn.Parameter(0.02 * torch.randn(self.heads, 1, self.head_dim))
        self.of_value = nn.Parameter(0.02 * torch.randn(self.heads, 1, self.value_dim))

    def queries(self, x: Tensor) -> Tensor:
        """Add each head's vector to the one query: [b, h, n, d]."""
        return split(self.to_q(x), 1) + self.of_query

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Add each head's value vector to its output: weights sum to 1."""
        return super().mix(seen + self.of_value, input)


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
