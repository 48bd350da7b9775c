"""Convert a call of PyTorch's attention to a `Call`."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.autocast import has_autocast
from regard.core.call import Call
from regard.core.errors import fail
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.score.base import Score
from regard.core.score.dense import DenseBias
from regard.core.support import Causal, Everything, Padding, Support
from regard.core.support.dense import DenseMask
from regard.models.hook import UnsupportedModelError
from regard.models.site import Site


def call_of(
    site: Site | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Call, list[int]]:
    """Convert the arguments of SDPA to a call; also return the shape of its output."""
    if query.is_nested or query.dim() < 2:
        fail(
            UnsupportedModelError,
            getattr(site, "module", "model"),
            "nested tensors" if query.is_nested else f"{query.dim()} axes",
            "q, k and v of at least [n, d]",
            "pad the batch, and mask the padding",
        )
    if has_autocast(query.device):
        low = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(low), key.to(low), value.to(low)
    lead = query.shape[:-3]
    if not lead == key.shape[:-3] == value.shape[:-3]:
        lead = torch.broadcast_shapes(lead, key.shape[:-3], value.shape[:-3])
    h = query.shape[-3] if query.dim() > 2 else 1
    shape = [*lead, *([h] if query.dim() > 2 else []), query.shape[-2], value.shape[-1]]

    def four(x: Tensor, heads: int) -> Tensor:
        if x.dim() == 4 and x.shape[:-2] == (*lead, heads):
            return x
        x = x if x.dim() > 2 else x[None]
        return x.expand(*lead, heads, *x.shape[-2:]).reshape(-1, heads, *x.shape[-2:])

    q = four(query, h)
    k, v = (four(x, x.shape[-3] if enable_gqa else h) for x in (key, value))
    if attn_mask is None:
        rule = _plain_rule(is_causal, scale)
    else:
        mask = attn_mask
        if mask.dim() > 4:
            mask = mask.expand(*lead, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
        support, score = with_mask(
            Causal() if is_causal else Everything(), Dot(scale), four_axes(mask), k.shape[2]
        )
        rule = Rule(support, score)
    return Call.of(q, k, v, rule, dropout=dropout_p, site=site), shape


def four_axes(x: Tensor) -> Tensor:
    """Add leading axes of 1 to a mask of [m], [n, m] or [h, n, m], which broadcasts."""
    return x[(None,) * (4 - x.dim())] if x.dim() < 4 else x


def with_mask(support: Support, score: Score, mask: Tensor, m: int) -> tuple[Support, Score]:
    """Add a model's mask tensor [b or 1, h or 1, n or 1, m or 1] to a support and a score.

    A bool mask is true at visible pairs; any other is added to the scores.

    >>> print(with_mask(Causal(), Dot(), torch.ones(2, 1, 1, 4, dtype=torch.bool), 4)[0])
    Causal() & Padding(<bool 2x4>)
    """
    mask = mask.expand(*mask.shape[:3], m)
    if mask.dtype != torch.bool:
        return support, score + DenseBias(mask)
    if mask.shape[1] == mask.shape[2] == 1:
        return support & Padding(mask[:, 0, 0]), score
    return support & DenseMask(mask), score


_rules: dict[tuple[bool, float | None], Rule] = {}


def _plain_rule(is_causal: bool, scale: float | None) -> Rule:
    """Return a shared rule for equal arguments, so that its plan is shared too."""
    found = _rules.get((is_causal, scale))
    if found is None:
        if len(_rules) > 64:
            _rules.clear()
        support: Support = Causal() if is_causal else Everything()
        found = _rules[is_causal, scale] = Rule(support, Dot(scale))
    return found
