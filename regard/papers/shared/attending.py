"""Attention written out, and calls that several checks attend with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Tiles
from regard.layers.attention import Attention, joined
from regard.models.site import Site
from regard.policies.tiling import causal_tiles
from regard.run.api import attend


def explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention of [b, h, n, d] as the formula says."""
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias, -1) @ v


def dense(layer: Attention, x: Tensor, mask: Tensor) -> Tensor:
    """Attend with the layer's weights under a written-out mask."""
    k, v = layer.keys(x)
    seen = F.scaled_dot_product_attention(layer.queries(x), k, v, mask, enable_gqa=True)
    mixed: Tensor = layer.to_out(joined(seen))
    return mixed


def dense_mask(met: Tensor) -> Tensor:
    """A mask for a model of transformers, of which pairs [n, m] may meet."""
    return torch.zeros(met.shape).masked_fill(~met, torch.finfo(torch.float32).min)[None, None]


CAUSAL = Rule(Causal())
SITE = Site(0, "self", "layers.0", 1, 1, 32, causal=True)


def sparse_gap(call: Call, tiles: Tensor, block: int) -> float:
    """Relative error of attention over chosen tiles."""
    dense = attend(call.q, call.k, call.v, CAUSAL)
    chosen = tiles & causal_tiles(call, block)
    sparse = attend(call.q, call.k, call.v, Rule(Causal() & Tiles(chosen, block)))
    return float((sparse - dense).norm() / dense.norm())
