"""Linear attention without order: every query reads the one memory of all keys."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.scan.inputs import prepare


def unordered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    keep: Tensor | None = None,
    scale: float = 1.0,
    normalize: float | None = None,
) -> Tensor:
    """Read `o_i = q_i (sum over j of k_j v_j^T)`: bidirectional, in O(n).

    `q [b, h, n, d]`, `k [b, g, n, d]`, `v [b, g, n, e]` with `g` dividing `h`; `keep [b, n]` is
    false at padding. With `normalize`, the output is divided by `q_i . sum over j of k_j`, held at
    least that far from zero. Returns `[b, h, n, e]`.

    >>> ones = torch.ones(1, 1, 3, 2)
    >>> unordered(ones, ones, torch.arange(3.0).view(1, 1, 3, 1), normalize=1e-6).flatten()
    tensor([1., 1., 1.])
    """
    values = v if normalize is None else with_ones(v)
    tokens = prepare(q, k, values, keep=keep, scale=scale)
    with torch.autocast(q.device.type, enabled=False):
        out = tokens.q @ (tokens.k.mT @ tokens.v)
        return (out if normalize is None else divided(out, normalize)).to(tokens.dtype)


def with_ones(v: Tensor) -> Tensor:
    """Add a channel of ones to the values, in which a scan sums its weights: `[b, h, n, e + 1]`."""
    return torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)


def divided(out: Tensor, least: float) -> Tensor:
    """Divide the values by the sum of their weights, the last channel of `out`.

    A sum closer to zero than `least` is held there, its sign kept: rows without any weight give
    zeros.
    """
    if not least > 0:
        fail(ValueRangeError, "normalize", least, "a number above 0 or None", "use 1e-6")
    total = out[..., -1:]
    held = torch.where(total.abs() < least, torch.copysign(total.new_full((), least), total), total)
    return out[..., :-1] / held
