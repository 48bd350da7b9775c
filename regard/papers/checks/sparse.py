"""Checks of rows in which a query meets some of the keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from regard.layers.attention import Attention, joined


def dense(layer: Attention, x: Tensor, mask: Tensor) -> Tensor:
    """Attend with the layer's weights under a written-out mask."""
    k, v = layer.keys(x)
    seen = F.scaled_dot_product_attention(layer.queries(x), k, v, mask, enable_gqa=True)
    mixed: Tensor = layer.to_out(joined(seen))
    return mixed
