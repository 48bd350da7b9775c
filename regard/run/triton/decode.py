"""Split-K decoding: a few queries over many keys, contiguous, paged or chosen.

One program reads one split of the keys of one key head, once, for all its query heads; the splits
are merged after. Keys are found through a page table, through a list of chosen positions, or
directly; heads may have windows and sinks of their own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.core.partial import Partial, merge_stacked, wide
from regard.run.bands import FAR
from regard.run.triton.here import interpreting

# Keys a program reads at a time, by head size: both tiles of k and v stay on the chip.
BLOCK = {64: 128, 128: 64, 256: 32}
# Programs to aim for: a few for each multiprocessor of a large GPU.
PROGRAMS = 528


@triton.jit
def _decode_kernel(
    p_q, p_k, p_v, p_table, p_index, p_first, p_lengths, p_window, p_sinks, p_out, p_lse,
    scale, n, share, chosen, blocks_a_split,
    s_qb, s_qh, s_qn, s_kb, s_kg, s_kn, s_vb, s_vg, s_vn, s_table, s_index_b, s_index_g,
    s_ob, s_oh, s_os, s_on, s_lb, s_lh, s_ls,
    D: tl.constexpr, E: tl.constexpr, D_PAD: tl.constexpr, E_PAD: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr,
    PAGED: tl.constexpr, INDEXED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b, g, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_row = tl.arange(0, ROWS)
    o_head = g * share + o_row // n
    o_query = o_row % n
    m_row = o_row < share * n
    o_d, o_e = tl.arange(0, D_PAD), tl.arange(0, E_PAD)
    length = tl.load(p_lengths + b)
    o_i = tl.load(p_first + b) + o_query
    b_window = tl.load(p_window + o_head, mask=m_row, other=0)
    b_sinks = tl.load(p_sinks + o_head, mask=m_row, other=0)
    # [ROWS, D_PAD]
    b_q = tl.load(
        p_q + b * s_qb + o_head[:, None] * s_qh + o_query[:, None] * s_qn + o_d[None, :],
        mask=m_row[:, None] & (o_d[None, :] < D), other=0.0,
    )  # fmt: skip
    b_top = tl.full([ROWS], float("-inf"), tl.float32)
    b_total = tl.zeros([ROWS], tl.float32)
    b_out = tl.zeros([ROWS, E_PAD], tl.float32)
    count = chosen if INDEXED else length
    start = split * blocks_a_split * BLOCK_M
    stop = tl.minimum(start + blocks_a_split * BLOCK_M, count)
    at = start
    while at < stop:  # numpy 2.4 lets the interpreter take no tensor as the end of a range
        o_m = at + tl.arange(0, BLOCK_M)
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
            o_k = b.to(tl.int64) * s_kb + g * s_kg + o_j * s_kn
            o_v = b.to(tl.int64) * s_vb + g * s_vg + o_j * s_vn
        # [D_PAD, BLOCK_M]
        b_k = tl.load(
            p_k + o_k[None, :] + o_d[:, None], mask=m_m[None, :] & (o_d[:, None] < D), other=0.0
        )
        if WIDE:  # the interpreter multiplies bfloat16 wrongly
            b_q, b_k = b_q.to(tl.float32), b_k.to(tl.float32)
        # [ROWS, BLOCK_M]
        b_s = tl.dot(b_q, b_k, input_precision="ieee") * scale
        apart = o_i[:, None] - o_j[None, :]
        near = (apart < b_window[:, None]) | (o_j[None, :] < b_sinks[:, None])
        b_s = tl.where(m_m[None, :] & m_row[:, None] & (apart >= 0) & near, b_s, float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_s, 1))
        b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp(b_s - b_safe[:, None])
        b_old = tl.exp(b_top - b_safe)
        b_total = b_total * b_old + tl.sum(b_p, 1)
        # [BLOCK_M, E_PAD]
        b_v = tl.load(
            p_v + o_v[:, None] + o_e[None, :], mask=m_m[:, None] & (o_e[None, :] < E), other=0.0
        )
        if WIDE:
            b_v = b_v.to(tl.float32)
        b_out = b_out * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
        b_top = b_new
        at += BLOCK_M
    some = b_total > 0
    b_safe = tl.where(some, b_total, 1.0)
    b_lse = tl.where(some, b_top + tl.log(b_safe), float("-inf"))
    p_row = p_lse + b * s_lb + o_head * s_lh + split * s_ls + o_query
    tl.store(p_row, b_lse, mask=m_row)
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
    most = (
        index.shape[2] if index is not None else page * (table.shape[1] if table is not None else 1)
    )
    block = BLOCK.get(triton.next_power_of_2(max(d, e)), 32 if max(d, e) > 64 else 128)
    block = max(16, min(block, triton.next_power_of_2(max(most, 1))))
    blocks = max(1, triton.cdiv(most, block))
    splits = max(1, min(blocks, splits or PROGRAMS // max(b * g, 1)))
    each = triton.cdiv(blocks, splits)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(b, h, splits, n, e, dtype=torch.float32)
    lse = q.new_empty(b, h, splits, n, dtype=torch.float32)
    none = lengths
    table_, index_ = (none if x is None else x.contiguous() for x in (table, index))
    _decode_kernel[(b, g, splits)](
        q, k, v, table_, index_, first, lengths, window, sinks, out, lse,
        scale, n, share, 0 if index is None else index.shape[2], each,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        0 if table is None else table_.stride(0),
        *((0, 0) if index is None else index_.stride()[:2]),
        *out.stride()[:4], *lse.stride()[:3],
        D=d, E=e,
        D_PAD=max(16, triton.next_power_of_2(d)), E_PAD=max(16, triton.next_power_of_2(e)),
        ROWS=max(16, triton.next_power_of_2(share * n)), BLOCK_M=block, PAGE=page,
        PAGED=table is not None, INDEXED=index is not None, WIDE=interpreting(),
    )  # fmt: skip
    whole = merge_stacked(Partial(out, lse), dim=2)
    assert whole.lse is not None
    return Partial(whole.out.to(q.dtype), whole.lse.to(wide(q.dtype)))


def per_head(x: int | Tensor | None, h: int, otherwise: int, device: torch.device) -> Tensor:
    """Give one number for each head."""
    if isinstance(x, Tensor):
        return x.to(device=device, dtype=torch.int32).expand(h).contiguous()
    number = otherwise if x is None else x
    return torch.full((h,), min(number, FAR), dtype=torch.int32, device=device)
