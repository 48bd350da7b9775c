"""Checks of rows that an executor runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from regard.papers.checks import Measured, check
from regard.papers.checks.measure import Largest, gap
from regard.run.api import attend


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def _trial(attention: Callable[..., Tensor], leaves: list[Tensor], way: Tensor) -> list[Tensor]:
    """Give the output, and the gradients of q, k and v."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, way)]


def _gaps(size: float) -> tuple[float, float, float]:
    """Largest logit; gap of chunked, and of dense float32 attention, to dense float64.

    A gap is the largest of output and gradients, each relative to its largest entry, over four
    sequences. 300 queries and 333 keys: no size of tile divides them.
    """
    q, k, v = (torch.randn(4, 2, n, 16) for n in (300, 333, 333))
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
def streaming() -> Measured:
    """Attention in chunks equals dense attention, where exp would overflow too, without n x m."""
    _, near, _ = _gaps(1.0)
    logit, far, far_dense = _gaps(200.0)
    few, many = _largest(2048), _largest(8192)
    return Measured(
        claim="Output and gradients equal dense attention to 1e-5 where no chunk divides the "
        "lengths; with logits near 1000 they are no further from float64 than twice what dense "
        "float32 attention is; four times the keys make no larger tensor, and none is near n x m.",
        held=near < 1e-5
        and far <= 2 * far_dense
        and logit > 700
        and many < 2 * few
        and many < 8192**2 * 4 / 16,
        numbers={
            "largest relative gap, output and gradients": near,
            "largest logit of the second trial": logit,
            "largest relative gap there": far,
            "that of dense float32 attention": far_dense,
            "largest tensor, 8192 queries and 2048 keys, MiB": few / 2**20,
            "largest tensor, 8192 queries and 8192 keys, MiB": many / 2**20,
            "scores of 8192 x 8192, MiB": 8192**2 * 4 / 2**20,
        },
        left_out="1e-5 at logits near 1000: float32 holds such a logit to 6e-5 only.",
    )
