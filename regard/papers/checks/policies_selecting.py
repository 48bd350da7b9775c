"""Checks of rows about what is computed or read: sparse prompts, selected keys, shared heads."""

from __future__ import annotations

from torch import Tensor

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Tiles
from regard.models.site import Site
from regard.policies.prompts import causal_tiles
from regard.run.doors import attend

CAUSAL = Rule(Causal())
SITE = Site(0, "self", "layers.0", 1, 1, 32, causal=True)


def sparse_gap(call: Call, tiles: Tensor, block: int) -> float:
    """Relative error of attention over chosen tiles."""
    dense = attend(call.q, call.k, call.v, CAUSAL)
    chosen = tiles & causal_tiles(call, block)
    sparse = attend(call.q, call.k, call.v, Rule(Causal() & Tiles(chosen, block)))
    return float((sparse - dense).norm() / dense.norm())
