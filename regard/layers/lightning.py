"""Linear attention with a decay for each head and depth (Lightning Attention, TransNormer)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.attention import joined
from regard.layers.inputs import LayerInput
from regard.layers.recurrent import Recurrent
from regard.layers.registry import register


@register("lightning_attention")
@method(
    "lightning_attention",
    call="import regard\n"
    'layer = regard.layer("lightning_attention", 512, heads=8, depth=0, layers=12)',
)
class LightningAttention(Recurrent):
    """Linear attention with a decay for each head and depth, normalized and gated (TNL).

    `o_t = sum_{s<=t} lambda^(t-s) (q_t k_s) v_s`, `y = norm(o) * (x W_u) W_o`, with q and k through
    SiLU and `lambda = exp(-(8 h / H) (1 - depth / layers))`; weights are not normalized.

    >>> LightningAttention(32, heads=4)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    log_decay: Tensor
    normalize: ClassVar[float | None] = None

    def __init__(
        self, dim: int, heads: int, *, depth: int = 0, layers: int = 1, **settings: Any
    ) -> None:
        super().__init__(dim, heads, **settings)
        need_size("layers", layers)
        if not 0 <= depth < layers:
            fail(ValueRangeError, "depth", depth, f"0 to {layers - 1}", "count layers from 0")
        rates = -8.0 * torch.arange(1, heads + 1) / heads * (1 - depth / layers)
        self.register_buffer("log_decay", rates, persistent=False)
        self.norm = nn.RMSNorm(heads * self.value_dim, elementwise_affine=False)
        self.to_gate = nn.Linear(dim, heads * self.value_dim, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """Return SiLU."""
        return F.silu(x)

    def rates(self, input: LayerInput) -> dict[str, Any]:
        """Return the decay of each head."""
        return {"log_decay": self.log_decay}

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Normalize, gate and project."""
        mixed: Tensor = self.to_out(self.norm(joined(seen)) * self.to_gate(input.x))
        return mixed
