"""Softmax a block of keys at a time: what kernels of split-K decoding do with their scores."""

from __future__ import annotations

import triton
import triton.language as tl

from regard.run.triton.loops import LN_2


@triton.jit
def weighed(b_top, b_total, b_s):
    """Weigh scores [ROWS, BLOCK_M] to the base 2; give the new top and total of each row, the
    weights, and what is left of what was summed under the old top.
    """
    b_new = tl.maximum(b_top, tl.max(b_s, 1))
    b_p = tl.exp2(b_s - b_new[:, None])
    b_old = tl.exp2(b_top - b_new)
    return b_new, b_total * b_old + tl.sum(b_p, 1), b_p, b_old


@triton.jit
def written(p_out, p_lse, b_out, b_top, b_total, m_row, m_e):
    """Write the partial of a split: rows at p_out [ROWS, E_PAD] and p_lse [ROWS]."""
    some = b_total > 0
    b_safe = tl.where(some, b_total, 1.0)
    b_lse = tl.where(some, (b_top + tl.log2(b_safe)) * LN_2, float("-inf"))
    tl.store(p_lse, b_lse, mask=m_row)
    tl.store(p_out, b_out / b_safe[:, None], mask=m_row[:, None] & m_e[None, :])
