"""Split-K decoding: a few queries over many keys, contiguous, paged or chosen.

One program reads one split of the keys of one key head, once, for all its query heads; a second
kernel merges the splits. Keys are found through a page table, through a list of chosen positions,
or directly. Heads may have windows and sinks of their own: blocks of keys that no head of a group
can meet are not read, and the rest are shared out evenly among the splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.core.partial import Partial
from regard.run.bands import FAR
from regard.run.triton.here import interpreting
from regard.run.triton.launch import DECODE, PROGRAMS, least_power, of_size
from regard.run.triton.loops import LN_2, LOG2_E, REMOVED, START, steps
from regard.run.triton.merging import merge_splits


@triton.jit
def _decode_kernel(
    p_q, p_k, p_v, p_table, p_index, p_first, p_lengths, p_window, p_sinks, p_out, p_lse,
    scale, n, share, chosen,
    s_qb, s_qh, s_qn, s_kb, s_kg, s_kn, s_vb, s_vg, s_vn, s_table, s_index_b, s_index_g,
    s_ob, s_oh, s_os, s_on, s_lb, s_lh, s_ls,
    D: tl.constexpr, E: tl.constexpr, D_PAD: tl.constexpr, E_PAD: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr,
    PAGED: tl.constexpr, INDEXED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    split, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_row = tl.arange(0, ROWS)
    o_head, o_query, m_row = g * share + o_row // n, o_row % n, o_row < share * n
    o_d, o_e = tl.arange(0, D_PAD), tl.arange(0, E_PAD)
    length, first = tl.load(p_lengths + b), tl.load(p_first + b)
    o_i = first + o_query
    b_window = tl.load(p_window + o_head, mask=m_row, other=0)
    b_sinks = tl.load(p_sinks + o_head, mask=m_row, other=0)
    # [ROWS, D_PAD]
    b_q = tl.load(
        p_q + b * s_qb + o_head[:, None] * s_qh + o_query[:, None] * s_qn + o_d[None, :],
        mask=m_row[:, None] & (o_d[None, :] < D), other=0.0,
    )  # fmt: skip
    if WIDE:  # the interpreter multiplies bfloat16 wrongly
        b_q = b_q.to(tl.float32)
    b_top = tl.full([ROWS], START, tl.float32)
    b_total = tl.zeros([ROWS], tl.float32)
    b_out = tl.zeros([ROWS, E_PAD], tl.float32)
    # Blocks that some head can meet: those of the sinks, then those from `near` on.
    if INDEXED:
        count, near, early = chosen, 0, 0
        blocks = tl.cdiv(chosen, BLOCK_M)
    else:
        count = tl.minimum(length, first + n)
        reach = tl.min(tl.where(m_row, o_i - b_window + 1, 1 << 30), 0)
        blocks = tl.cdiv(count, BLOCK_M)
        near = tl.minimum(tl.maximum(reach, 0) // BLOCK_M, blocks)
        early = tl.minimum(tl.cdiv(tl.max(b_sinks, 0), BLOCK_M), near)
    seen = early + blocks - near
    each = tl.cdiv(seen, tl.num_programs(0))
    for step in steps(split * each, tl.minimum(split * each + each, seen)):
        o_m = tl.where(step < early, step, step - early + near) * BLOCK_M + tl.arange(0, BLOCK_M)
        m_m = o_m < count
        if INDEXED:
            o_j = tl.load(p_index + b * s_index_b + g * s_index_g + o_m, mask=m_m, other=-1)
            m_m = m_m & (o_j >= 0) & (o_j < length)
            o_j = tl.where(m_m, o_j, 0)
        else:
            o_j = o_m
        if PAGED:
            o_page = tl.load(p_table + b * s_table + o_j // PAGE, mask=m_m, other=0).to(tl.int64)
            o_k = o_page * s_kb + g * s_kg + (o_j % PAGE) * s_kn
            o_v = o_page * s_vb + g * s_vg + (o_j % PAGE) * s_vn
        else:
            o_k = b * s_kb + g * s_kg + o_j.to(tl.int64) * s_kn
            o_v = b * s_vb + g * s_vg + o_j.to(tl.int64) * s_vn
        # [D_PAD, BLOCK_M]
        b_k = tl.load(
            p_k + o_k[None, :] + o_d[:, None], mask=m_m[None, :] & (o_d[:, None] < D), other=0.0
        )
        # [BLOCK_M, E_PAD]
        b_v = tl.load(
            p_v + o_v[:, None] + o_e[None, :], mask=m_m[:, None] & (o_e[None, :] < E), other=0.0
        )
        if WIDE:
            b_k, b_v = b_k.to(tl.float32), b_v.to(tl.float32)
        # [ROWS, BLOCK_M]
        b_s = tl.dot(b_q, b_k, input_precision="ieee") * scale
        apart = o_i[:, None] - o_j[None, :]
        met = (apart < b_window[:, None]) | (o_j[None, :] < b_sinks[:, None])
        b_s = tl.where(met & (apart >= 0) & m_m[None, :], b_s, REMOVED)
        b_new = tl.maximum(b_top, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        b_old = tl.exp2(b_top - b_new)
        b_total = b_total * b_old + tl.sum(b_p, 1)
        # [ROWS, E_PAD]
        b_out = b_out * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
        b_top = b_new
    some = b_total > 0
    b_safe = tl.where(some, b_total, 1.0)
    b_lse = tl.where(some, (b_top + tl.log2(b_safe)) * LN_2, float("-inf"))
    tl.store(p_lse + b * s_lb + o_head * s_lh + split * s_ls + o_query, b_lse, mask=m_row)
    p_row = p_out + b * s_ob + o_head[:, None] * s_oh + split * s_os + o_query[:, None] * s_on
    tl.store(
        p_row + o_e[None, :], b_out / b_safe[:, None], mask=m_row[:, None] & (o_e[None, :] < E)
    )


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    first: Tensor,
    lengths: Tensor,
    window: Tensor,
    sinks: Tensor,
    table: Tensor | None = None,
    index: Tensor | None = None,
    splits: int | None = None,
) -> Partial:
    """Attend causally from q [b, h, n, d] at positions first [b] + 0..n-1.

    k, v are [b, g, m, d], or [pages, g, page, d] with `table` [b, pages of a row]; `lengths` [b]
    keys are real; `index` [b, g, c] chooses key positions (-1 for none). `window` and `sinks` [h]
    are the numbers of each head.
    """
    b, h, n, d = q.shape
    g, e = k.shape[1], v.shape[3]
    share, page = h // g, k.shape[2]
    most = page if table is None else page * table.shape[1]
    most = most if index is None else index.shape[2]
    launch = of_size(DECODE, max(d, e), q.element_size())
    # A table or a list is one more load to wait for: keys come as far ahead only with more stages.
    ahead = launch.stages + 2 * (table is not None or index is not None)
    block = min(launch.cols, least_power(most))
    splits = splits or PROGRAMS // max(b * g, 1)
    splits = max(1, min(-(-most // block), splits))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    # A split alone is the whole, in the dtype that is asked for.
    out = q.new_empty(b, h, splits, n, e, dtype=torch.float32 if splits > 1 else q.dtype)
    lse = q.new_empty(b, h, splits, n, dtype=torch.float32)
    table_, index_ = (lengths if x is None else x.contiguous() for x in (table, index))
    if out.numel():
        _decode_kernel[(splits, g, b)](
            q, k, v, table_, index_, first, lengths, window, sinks, out, lse,
            scale * LOG2_E, n, share, 0 if index is None else index.shape[2],
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            0 if table is None else table_.stride(0),
            *((0, 0) if index is None else index_.stride()[:2]),
            *out.stride()[:4], *lse.stride()[:3],
            D=d, E=e, D_PAD=least_power(d), E_PAD=least_power(e), ROWS=least_power(share * n),
            BLOCK_M=block, PAGE=page, PAGED=table is not None, INDEXED=index is not None,
            WIDE=interpreting(), num_warps=launch.warps, num_stages=ahead,
        )  # fmt: skip
    if splits == 1:
        return Partial(out[:, :, 0], lse[:, :, 0])
    return merge_splits(out, lse, q.dtype)


def per_head(x: int | Tensor | None, h: int, otherwise: int, device: torch.device) -> Tensor:
    """Give one number for each head."""
    if isinstance(x, Tensor):
        return x.to(device=device, dtype=torch.int32).expand(h).contiguous()
    number = otherwise if x is None else x
    return torch.full((h,), min(number, FAR), dtype=torch.int32, device=device)
