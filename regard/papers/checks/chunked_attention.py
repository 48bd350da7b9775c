"""Attention in chunks equals dense attention, where exp would overflow too, without n x m."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.measure import Largest, gap
from regard.run.api import attend


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def _trial(attention: Callable[..., Tensor], leaves: list[Tensor], way: Tensor) -> list[Tensor]:
    """Give the output, and the gradients of q, k and v."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, way)]


def _gaps(size: float, exact: bool = False) -> tuple[float, float, float]:
    """Largest logit; gap of chunked, and of dense float32 attention, to dense float64.

    A gap is the largest of output and gradients, each relative to its largest entry, over four
    sequences. 300 queries and 333 keys: no size of tile divides them. `exact` rounds queries and
    keys to 64ths, so that float32 holds their logits without rounding.
    """
    q, k, v = (torch.randn(4, 2, n, 16) for n in (300, 333, 333))
    if exact:
        q, k = ((64 * x).round() / 64 for x in (q, k))
    leaves, way = [q * size, k, v], torch.randn(4, 2, 300, 16)
    true = _trial(_dense, [x.double() for x in leaves], way.double())
    found = []
    for attention in (partial(attend, executor="chunked"), _dense):
        made = _trial(attention, leaves, way)
        found.append(max(gap(a, b) / float(b.abs().max()) for a, b in zip(made, true, strict=True)))
    return float((q @ k.mT).abs().max()) * size / 4, found[0], found[1]


def _largest(keys: int) -> int:
    """Bytes of the largest tensor made when 8192 queries meet `keys` keys."""
    q, k = torch.randn(1, 1, 8192, 32), torch.randn(1, 1, keys, 32)
    with Largest() as largest:
        attend(q, k, k, executor="chunked")
    return largest.bytes


@check("chunked_attention")
def streaming() -> Claims:
    """Attention in chunks equals dense attention, where exp would overflow too, without n x m."""
    _, near, _ = _gaps(1.0)
    logit, far, far_dense = _gaps(200.0)
    logit_exact, held, _ = _gaps(200.0, exact=True)
    few, many = _largest(2048), _largest(8192)
    yield claim(
        "Output and gradients", "largest relative difference, output and gradients", near
    ).within(1e-5, "dense attention in float64", because=CATALOGUE)
    # float32 holds a logit near 1000 to 6e-5, and no attention can be nearer than its logits are:
    # to 1e-5 where logits are numbers of float32, and as near as PyTorch where they are rounded.
    yield claim("Output and gradients", "the same with logits near 1000, of 64ths", held).within(
        1e-5, "dense attention in float64", because=CATALOGUE
    )
    yield claim("Output and gradients", "largest logit of that trial ", logit_exact).above(
        88, "where exp overflows in float32", because="log of the largest float32"
    )
    yield claim("Output and gradients", "the same with logits near 1000", far).at_most(
        far_dense, "dense attention in float32", times=2, because="twice what PyTorch itself loses"
    )
    yield claim("Output and gradients", "largest logit of that trial", logit).above(
        88, "where exp overflows in float32", because="log of the largest float32"
    )
    yield claim("peak memory", "largest tensor at 8,192 keys", many).below(
        few, "at 2,048 keys", times=4, because="less than linearly: 4 times the keys"
    )
    yield claim("peak memory", "largest tensor at 8,192 keys ", many).below(
        8192**2 * 4, "n m 4 bytes", times=1 / 16, because="far below: a sixteenth"
    )
