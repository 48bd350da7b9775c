"""Calls of random heads, and of even ones."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.models.site import Site
from regard.papers.shared.copier_models import CAUSAL

PLACE = Site(0, module="attention", heads=4, kv_heads=4)


def random(n: int = 24, rule: Rule = CAUSAL, b: int = 1) -> Call:
    """Heads of no pattern."""
    q, k, v = torch.randn(3, b, 4, n, 8, dtype=torch.float64)
    return Call.of(2 * q, k, v, rule, site=PLACE)


def even(call: Call) -> Call:
    """The same with weights that are all alike."""
    return call.replace(q=torch.zeros_like(call.q))
