"""Heads that carry relations between tokens instead of their features (dual attention)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.errors import ShapeError, fail
from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("relational_attention")
class RelationalAttention(Attention):
    """A token receives its relations to the tokens it attends to, and their symbols.

    `head_i = sum_j a_ij (r_ij W_r + s_j W_s)`, `r_ij[l] = (x_i R_l) (y_j T_l)`. Since r_ij is a
    product with a function of j alone, attention averages `y_j T` and `s_j`, and the product is
    taken once for each query. Symbols are retrieved from a learned library by content. With
    `symmetric`, R = T.

    >>> RelationalAttention(32, heads=4, relations=3)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities()

    def __init__(
        self, dim: int, heads: int, *, relations: int | None = None, width: int | None = None,
        symbols: int = 16, symmetric: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "value_dim")
        need_size("symbols", symbols)
        self.relations = heads if relations is None else relations
        self.width = max(dim // self.relations // 2, 1) if width is None else width
        need_size("relations", self.relations)
        self.symmetric = symmetric
        super().__init__(dim, heads, value_dim=self.relations * self.width + dim, **settings)
        if symmetric and self.context_dim != dim:
            fail(
                ShapeError, "context_dim", self.context_dim, f"{dim}, as dim",
                "pass symmetric=False for a context of another width",
            )  # fmt: skip
        self.library = nn.Parameter(torch.randn(2, symbols, dim) * dim**-0.5)
        self.of_relations = nn.Parameter(
            torch.randn(heads, self.relations, self.head_dim) * self.relations**-0.5
        )
        self.of_symbols = nn.Parameter(torch.randn(heads, dim, self.head_dim) * dim**-0.5)
        self.to_out = nn.Linear(heads * self.head_dim, dim, self.to_out.bias is not None)

    def make_projections(self, bias: bool) -> None:
        """Build projections for queries, keys, relations and symbols."""
        super().make_projections(bias)
        wide = self.relations * self.width
        self.to_relation = nn.Linear(self.dim, wide, False)
        if self.symmetric:  # one projection for both, under one name
            del self.to_v
        else:
            self.to_v = nn.Linear(self.context_dim, wide, False)
        self.to_symbol = nn.Linear(self.context_dim, self.dim, False)

    def symbols(self, context: Tensor) -> Tensor:
        """Retrieve a symbol for each token from the library: [b, m, dim]."""
        names, vectors = self.library
        read: Tensor = (self.to_symbol(context) @ names.T * self.dim**-0.5).softmax(-1) @ vectors
        return read

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys, and their relation vectors and symbols as values, alike for every head."""
        k = self.to_k(context).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        of_context = self.to_relation if self.symmetric else self.to_v
        values = torch.cat((of_context(context), self.symbols(context)), -1)
        return k, values[:, None].expand(-1, self.kv_heads, -1, -1)

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Relate each query to its average."""
        wide = self.relations * self.width
        other, symbol = seen.split([wide, self.dim], -1)
        own = self.to_relation(input.x)[:, None].unflatten(-1, (self.relations, self.width))
        related = (own * other.unflatten(-1, (self.relations, self.width))).sum(-1)
        return super().mix(related @ self.of_relations + symbol @ self.of_symbols, input)


@register("dual_attention")
@method(
    "dual_attention",
    call='import regard\nlayer = regard.layer("dual_attention", 512, heads=8, relational=4)',
)
class DualAttention(Layer):
    """Some heads carry features, the others relations (dual attention transformer).

    `relational` of the `heads` are relational; none of them is multi-head attention exactly.

    >>> DualAttention(32, heads=4, relational=2)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities()

    def __init__(
        self, dim: int, heads: int, *, relational: int | None = None,
        relations: int | None = None, width: int | None = None, symbols: int = 16,
        symmetric: bool = False, causal: bool = False, context_dim: int | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "value_dim")
        super().__init__(dim, causal=causal, context_dim=context_dim)
        count = heads // 2 if relational is None else relational
        need_size("relational", count, 0)
        if count > heads:
            fail(ShapeError, "relational", count, f"at most {heads} heads", "choose fewer")
        given = {"causal": causal, "context_dim": context_dim, "head_dim": dim // heads, **settings}
        self.sensory = Attention(dim, heads - count, **given) if count < heads else None
        self.relational = (
            RelationalAttention(
                dim,
                count,
                relations=relations,
                width=width,
                symbols=symbols,
                symmetric=symmetric,
                **given,
            )
            if count
            else None
        )

    def compute(self, input: LayerInput) -> Tensor:
        """Sum the outputs of both kinds of heads."""
        outs = []
        for name, part in (("sensory", self.sensory), ("relational", self.relational)):
            if part is not None:
                outs.append(part(*input.as_passed(), **input.for_part(name, part)))
        both: Tensor = sum(outs[1:], outs[0])
        return both
