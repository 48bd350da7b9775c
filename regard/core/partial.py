"""Attention over part of the keys, and the merge that makes parts whole.

A `Partial` is the pair (out, lse). Over disjoint sets of keys A and B,

    lse = log(exp(lse_A) + exp(lse_B)),   out = exp(lse_A - lse) out_A + exp(lse_B - lse) out_B,

which is associative, commutative, and has an identity (zeros, -inf). Everything that splits work
(chunks, split-K decoding, sinks + window, rings, trees) stands on this one function.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.errors import RuleError, ShapeError, fail, shape_of


class Partial(NamedTuple):
    """Attention over some keys: `out` [b, h, n, e], and `lse` [b, h, n], the log of all weight.

    Weighs that do not normalise (sigmoid, ReLU) have no lse: their parts simply add.
    """

    out: Tensor
    lse: Tensor | None


def nothing(like: Tensor, *, sums: bool = False) -> Partial:
    """Return the identity of `merge` for outputs shaped like `like` [b, h, n, e]."""
    lse = torch.full(like.shape[:-1], -torch.inf, dtype=wide(like.dtype), device=like.device)
    return Partial(torch.zeros_like(like), None if sums else lse)


def merge(*parts: Partial) -> Partial:
    """Merge attention over disjoint sets of keys into attention over their union.

    >>> q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 6, 8)
    >>> import regard
    >>> whole = regard.partial(q, k, k)
    >>> parts = [regard.partial(q, k[:, :, c], k[:, :, c]) for c in (slice(0, 2), slice(2, 6))]
    >>> torch.allclose(merge(*parts).out, whole.out, atol=1e-6)
    True
    """
    if not parts:
        fail(RuleError, "parts", "no partial", "at least one", "start from nothing(like)")
    for part in parts:
        need_partial("parts", part)
    shapes = {p.out.shape for p in parts}
    if len(shapes) > 1:
        fail(
            ShapeError,
            "parts",
            f"outputs {sorted(map(list, shapes))}",
            "one shape",
            "merge attention of the same queries",
        )
    if len({p.lse is None for p in parts}) > 1:
        fail(
            RuleError,
            "parts",
            "some with and some without lse",
            "parts of one kind of weigh",
            "merge softmax with softmax, sigmoid with sigmoid",
        )
    if len({(p.out.dtype, p.out.device, p.lse is not None and p.lse.shape) for p in parts}) > 1:
        fail(
            ShapeError,
            "parts",
            ", ".join(f"{p.out.dtype} on {p.out.device}" for p in parts),
            "one dtype, one device and one shape of lse",
            "cast and move the parts to those of the first",
        )
    if len(parts) == 1:
        return parts[0]
    if parts[0].lse is None:
        return Partial(torch.stack([p.out for p in parts]).sum(0), None)
    out, lse = parts[0]
    for part in parts[1:]:
        assert lse is not None
        assert part.lse is not None
        lse = log_sum_exp(torch.stack([lse, part.lse]), dim=0)
        # The shares of the two add up to one, so one pass over the outputs mixes them.
        share = torch.exp(part.lse - finite(lse))[..., None].to(out.dtype)
        out = torch.lerp(out, part.out, share)
    return Partial(out, lse)


def log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """Return log of the sum of exponentials, -inf and with zero gradient where all of x is -inf."""
    if x.shape[dim] == 0:
        return x.sum(dim) - torch.inf
    _, total, top = _sized(x, dim)
    return _log(total, top).squeeze(dim)


def softmax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return exp(x) over its sum along `dim`, 0 where all of x is -inf, and the log of the sum."""
    if x.shape[dim] == 0:
        return x, x.sum(dim) - torch.inf
    size, total, top = _sized(x, dim)
    return size / torch.where(total > 0, total, 1.0), _log(total, top).squeeze(dim)


def _sized(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return exponentials against the top, their sum, and the top: both keep `dim`."""
    top = finite(x.detach().amax(dim, keepdim=True))
    size = torch.exp(x - top)
    return size, size.sum(dim, keepdim=True), top


def _log(total: Tensor, top: Tensor) -> Tensor:
    """Log of a sum that was taken against the top; -inf, without a gradient, where it is none."""
    some = total > 0
    return torch.where(some, torch.log(torch.where(some, total, 1.0)) + top, -torch.inf)


def finite(x: Tensor) -> Tensor:
    """Put 0 for infinities: exp(-inf - 0) is 0, where exp(-inf + inf) would be no number."""
    return torch.where(x.isfinite(), x, 0.0)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def need_partial(name: str, x: object) -> None:
    """Raise unless x is a Partial."""
    if not isinstance(x, Partial):
        fail(RuleError, name, shape_of(x), "a Partial (out, lse)", "call regard.partial")
