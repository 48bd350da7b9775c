"""Merge what the splits of a decode found: `regard.core.partial.merge` in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.core.partial import Partial
from regard.run.triton.launch import least_power
from regard.run.triton.loops import steps


@triton.jit
def _merge_kernel(
    p_parts, p_lses, p_out, p_lse, splits, n,
    E: tl.constexpr, E_PAD: tl.constexpr, SPLITS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    bh, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_s, o_e = tl.arange(0, SPLITS), tl.arange(0, E_PAD)
    # [SPLITS]
    p_row = p_lses + bh * splits * n + row
    b_lses = tl.load(p_row + o_s * n, mask=o_s < splits, other=float("-inf"))
    b_top = tl.max(b_lses, 0)
    b_top = tl.where(b_top == float("-inf"), 0.0, b_top)
    b_total = tl.sum(tl.exp(b_lses - b_top), 0)
    b_safe = tl.where(b_total > 0, b_total, 1.0)
    b_lse = tl.where(b_total > 0, b_top + tl.log(b_safe), float("-inf"))
    b_out = tl.zeros([E_PAD], tl.float32)
    for first in steps(0, splits, AT_ONCE):
        o_at = first + tl.arange(0, AT_ONCE)
        # [AT_ONCE]
        b_share = tl.load(p_row + o_at * n, mask=o_at < splits, other=float("-inf"))
        b_share = tl.exp(b_share - b_top) / b_safe
        # [AT_ONCE, E_PAD]
        b_part = tl.load(
            p_parts + ((bh * splits + o_at[:, None]) * n + row) * E + o_e[None, :],
            mask=(o_at[:, None] < splits) & (o_e[None, :] < E), other=0.0,
        )  # fmt: skip
        b_out += tl.sum(b_share[:, None] * b_part, 0)
    tl.store(p_lse + bh * n + row, b_lse)
    tl.store(p_out + (bh * n + row) * E + o_e, b_out, mask=o_e < E)


def merge_splits(parts: Tensor, lses: Tensor, dtype: torch.dtype) -> Partial:
    """Merge parts [b, h, splits, n, e] with their lse [b, h, splits, n], both contiguous."""
    b, h, splits, n, e = parts.shape
    out = parts.new_empty(b, h, n, e, dtype=dtype)
    lse = lses.new_empty(b, h, n)
    _merge_kernel[(b * h, n)](
        parts, lses, out, lse, splits, n,
        E=e, E_PAD=least_power(e), SPLITS=least_power(splits, 1), AT_ONCE=16,
    )  # fmt: skip
    return Partial(out, lse)


def room(q: Tensor, e: int, splits: int) -> Partial:
    """Allocate room for what splits find: out [b, h, splits, n, e] and its lse.

    A split alone is the whole, in the dtype that is asked for.
    """
    b, h, n = q.shape[:3]
    dtype = torch.float32 if splits > 1 else q.dtype
    out = q.new_empty(b, h, splits, n, e, dtype=dtype)
    return Partial(out, q.new_empty(b, h, splits, n, dtype=torch.float32))


def made_whole(parts: Partial, dtype: torch.dtype) -> Partial:
    """Merge what was written to `room`."""
    out, lse = parts
    assert lse is not None
    if out.shape[2] == 1:
        return Partial(out[:, :, 0], lse[:, :, 0])
    return merge_splits(out, lse, dtype)
