"""Layers that read the keys and values of another layer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from regard.core.errors import RuleError, fail
from regard.core.keys import Dense
from regard.core.method import method
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("cross_layer_attention", "mlkv")
@method(
    "cross_layer_attention",
    call="import regard\n"
    'model = regard.model(["cross_layer_attention"] * 4, dim=512, heads=8, kv_heads=2,\n'
    '    vocab=1000, sources=[0, 0, 2, 2], position="rotary")',
)
@method(
    "mlkv",
    call="import regard\n"
    "# Eight layers, two of which own keys: two groups of four.\n"
    'model = regard.model(["mlkv"] * 8, dim=512, heads=8, kv_heads=2, vocab=1000,\n'
    '    sources=[0, 0, 0, 0, 4, 4, 4, 4], position="rotary")',
)
class CrossLayer(Attention):
    """Attention that shares its keys with later layers, or reads those of an earlier one.

    With `owns_keys=False` it has queries alone, `o = softmax(q k_owner^T) v_owner`; `sources` of
    its stack names the owner.

    >>> CrossLayer(64, heads=8, owns_keys=False).to_k is None
    True
    """

    can: ClassVar[Capabilities] = Capabilities(multihead_weights=True)

    def __init__(self, dim: int, heads: int, *, owns_keys: bool = True, **settings: Any) -> None:
        self.owns_keys = owns_keys
        super().__init__(dim, heads, **settings)

    def make_projections(self, bias: bool) -> None:
        """Build no key and value projections where another layer's keys are read."""
        super().make_projections(bias)
        if not self.owns_keys:
            self.to_k: nn.Linear | None = None  # type: ignore[assignment]
            self.to_v: nn.Linear | None = None  # type: ignore[assignment]

    def read(self, input: LayerInput) -> tuple[Tensor, Dense]:
        """Share the keys read here, or read those that an earlier layer shared."""
        if self.owns_keys:
            q, input.between["keys"] = super().read(input)
            return q, input.between["keys"]
        if "keys" not in input.between:
            fail(
                RuleError, "between", "no keys", "those of an earlier layer",
                "put the layer in a Stack with sources=[0, 0, ...], or pass owns_keys=True",
            )  # fmt: skip
        q = self.position.turn(self.normed_queries(input), input.positions)
        return q, input.between["keys"]
