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
from regard.run.triton.availability import interpreting
from regard.run.triton.launch import DECODE, Launch, least_power, of_size, splits_of
from regard.run.triton.loops import LOG2_E, REMOVED, START, steps
from regard.run.triton.merging import made_whole, room
from regard.run.triton.online import weighed, written


# Numbers that change from step to step make no kernel of their own.
@triton.jit(do_not_specialize=["first", "length", "chosen"])
def _decode_kernel(
    p_q, p_k, p_v, p_table, p_index, p_first, p_lengths, p_window, p_sinks, p_out, p_lse,
    scale, n, share, first, length, chosen,
    s_qb, s_qh, s_qn, s_kb, s_kg, s_kn, s_vb, s_vg, s_vn, s_table, s_index_b, s_index_g,
    s_ob, s_oh, s_os, s_on, s_lb, s_lh, s_ls,
    D: tl.constexpr, E: tl.constexpr, D_PAD: tl.constexpr, E_PAD: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr,
    PAGED: tl.constexpr, INDEXED: tl.constexpr, PLACED: tl.constexpr, BANDED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    split, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_row = tl.arange(0, ROWS)
    o_head, o_query, m_row = g * share + o_row // n, o_row % n, o_row < share * n
    o_d, o_e = tl.arange(0, D_PAD), tl.arange(0, E_PAD)
    if PLACED:
        length, first = tl.load(p_lengths + b), tl.load(p_first + b)
    o_i = first + o_query
    if BANDED:
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
        count, near, early = tl.minimum(length, first + n), 0, 0
        blocks = tl.cdiv(count, BLOCK_M)
        if BANDED:
            reach = tl.min(tl.where(m_row, o_i - b_window + 1, 1 << 30), 0)
            near = tl.minimum(tl.maximum(reach, 0) // BLOCK_M, blocks)
            early = tl.minimum(tl.cdiv(tl.max(b_sinks, 0), BLOCK_M), near)
    seen = early + blocks - near
    each = tl.cdiv(seen, tl.num_programs(0))
    for step in steps(split * each, tl.minimum(split * each + each, seen)):
        o_m = tl.where(step < early, step, step - early + near) * BLOCK_M + tl.arange(0, BLOCK_M)
        m_m = o_m < count
        if INDEXED:
            o_j = tl.load(p_index + b * s_index_b + g * s_index_g + o_m, mask=m_m, other=-1)
            o_j = o_j.to(tl.int32)
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
        met = (apart >= 0) & m_m[None, :]
        if BANDED:
            met = met & ((apart < b_window[:, None]) | (o_j[None, :] < b_sinks[:, None]))
        b_top, b_total, b_p, b_old = weighed(b_top, b_total, tl.where(met, b_s, REMOVED))
        # [ROWS, E_PAD]
        b_out = b_out * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
    p_row = p_out + b * s_ob + o_head[:, None] * s_oh + split * s_os + o_query[:, None] * s_on
    p_rows = p_lse + b * s_lb + o_head * s_lh + split * s_ls + o_query
    written(p_row + o_e[None, :], p_rows, b_out, b_top, b_total, m_row, o_e < E)


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    first: Tensor | int,
    lengths: Tensor | int,
    window: Tensor | None = None,
    sinks: Tensor | None = None,
    table: Tensor | None = None,
    index: Tensor | None = None,
    splits: int | None = None,
) -> Partial:
    """Attend causally from q [b, h, n, d] at positions first [b] + 0..n-1.

    k, v are [b, g, m, d], or [pages, g, page, d] with `table` [b, pages of a row]; `lengths` [b]
    keys are real; `index` [b, g, c] chooses key positions (-1 for none). `window` and `sinks` [h]
    are the numbers of each head. A number in place of `first` and `lengths` is that of all rows:
    nothing is written for the kernel to read.
    """
    launch, most = _launch(q, k, v, table, index)
    splits = splits_of(most, launch.cols, q.shape[0] * k.shape[1], splits)
    parts = room(q, v.shape[3], splits)
    decode_into(
        parts, q, k, v, scale=scale, first=first, lengths=lengths, window=window, sinks=sinks,
        table=table, index=index,
    )  # fmt: skip
    return made_whole(parts, q.dtype)


def decode_into(
    parts: Partial,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    first: Tensor | int,
    lengths: Tensor | int,
    window: Tensor | None = None,
    sinks: Tensor | None = None,
    table: Tensor | None = None,
    index: Tensor | None = None,
) -> None:
    """Write what splits of `decode` find to parts [b, h, splits, n, e], as many as there are."""
    b, h, n, d = q.shape
    g, e, page = k.shape[1], v.shape[3], k.shape[2]
    share = h // g
    launch, _ = _launch(q, k, v, table, index)
    # A table or a list is one more load to wait for: keys come as far ahead only with more stages.
    ahead = launch.stages + 2 * (table is not None or index is not None)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out, lse = parts
    assert lse is not None
    placed, banded = isinstance(first, Tensor), window is not None or sinks is not None
    if banded:
        window = per_head(window, h, FAR, q.device)
        sinks = per_head(sinks, h, 0, q.device)
    if index is not None and index.stride(-1) != 1:
        index = index.contiguous()
    table = None if table is None else table.contiguous()
    if out.numel():
        # Where a kernel reads nothing, any tensor stands.
        _decode_kernel[(out.shape[2], g, b)](
            q, k, v, *(q if x is None else x for x in (table, index)),
            *((first, lengths) if placed else (q, q)), *((window, sinks) if banded else (q, q)),
            out, lse, scale * LOG2_E, n, share, *((0, 0) if placed else (first, lengths)),
            0 if index is None else index.shape[2],
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            0 if table is None else table.stride(0),
            *((0, 0) if index is None else index.stride()[:2]),
            *out.stride()[:4], *lse.stride()[:3],
            D=d, E=e, D_PAD=least_power(d), E_PAD=least_power(e), ROWS=least_power(share * n),
            BLOCK_M=launch.cols, PAGE=page, PAGED=table is not None,
            INDEXED=index is not None, PLACED=placed, BANDED=banded, WIDE=interpreting(),
            num_warps=launch.warps, num_stages=ahead,
        )  # fmt: skip


def _launch(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, index: Tensor | None
) -> tuple[Launch, int]:
    """Return how to launch, and how many keys a row may have."""
    most = k.shape[2] if table is None else k.shape[2] * table.shape[1]
    most = most if index is None else index.shape[2]
    launch = of_size(DECODE, max(q.shape[3], v.shape[3]), q.element_size())
    return launch._replace(cols=min(launch.cols, least_power(most))), most


def per_head(x: int | Tensor | None, h: int, otherwise: int, device: torch.device) -> Tensor:
    """Return one number for each head."""
    if isinstance(x, Tensor):
        return x.to(device=device, dtype=torch.int32).expand(h).contiguous()
    number = otherwise if x is None else x
    return torch.full((h,), min(number, FAR), dtype=torch.int32, device=device)
