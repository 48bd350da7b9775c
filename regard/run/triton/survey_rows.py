"""First sweep of a survey: each block of queries over its keys, for lse, entropy and row max.

With x = score - top (to the base 2), a row needs two running sums: of 2^x and of 2^x x. Then
entropy = log2(sum 2^x) - (sum 2^x x) / (sum 2^x) in bits; both are rescaled when the top moves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from regard.run.triton.loops import LN_2, REMOVED, START, steps


@triton.jit
def scores(
    b_q, b_k, o_i, o_j, met, scale, cap, slope,
    CAPPED: tl.constexpr, SLOPED: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Score a tile to the base 2; `o_i`, `o_j` and `met` already lie along its axes."""
    if WIDE:  # the interpreter multiplies bfloat16 wrongly
        b_q, b_k = b_q.to(tl.float32), b_k.to(tl.float32)
    # [rows, cols]
    b_s = tl.dot(b_q, b_k, input_precision="ieee") * scale
    if SLOPED:
        b_s -= slope * tl.abs(o_j - o_i).to(tl.float32)
    if CAPPED:
        # tanh by the exponential: 1 - 2 / (e^2x + 1), and e^2x = 2^(2 log2(e) x)
        b_s = cap * (1.0 - 2.0 / (tl.exp2(2.8853900817779268 * b_s / cap) + 1.0))
    if MASKED:
        b_s = tl.where(met, b_s, REMOVED)
    return b_s


@triton.jit
def _look(
    b_top, b_total, b_inner, b_q, p_k, s_kn, o_i, block, m, low, high, sinks, scale, cap, slope,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_M: tl.constexpr, CAPPED: tl.constexpr,
    SLOPED: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into the running sums of each row."""
    o_at, o_d = tl.arange(0, BLOCK_M), tl.arange(0, D_PAD)
    o_j = block * BLOCK_M + o_at
    p_block = p_k + tl.cast(block, tl.int64) * BLOCK_M * s_kn
    # [D_PAD, BLOCK_M]
    b_k = tl.load(
        p_block + o_at[None, :] * s_kn + o_d[:, None],
        mask=(o_j[None, :] < m) & (o_d[:, None] < D), other=0.0,
    )  # fmt: skip
    apart = o_j[None, :] - o_i[:, None]
    met = (apart <= high) & ((apart >= low) | (o_j[None, :] < sinks)) & (o_j[None, :] < m)
    b_s = scores(
        b_q, b_k, o_i[:, None], o_j[None, :], met, scale, cap, slope, CAPPED, SLOPED, MASKED, WIDE
    )
    b_new = tl.maximum(b_top, tl.max(b_s, 1))
    b_x = b_s - b_new[:, None]
    b_p = tl.exp2(b_x)
    b_moved = b_top - b_new
    b_old = tl.exp2(b_moved)
    b_inner = (b_inner + b_moved * b_total) * b_old + tl.sum(b_p * b_x, 1)
    b_total = b_total * b_old + tl.sum(b_p, 1)
    return b_new, b_total, b_inner


@triton.jit
def rows_kernel(
    p_q, p_k, p_slopes, p_lse, p_entropy, p_max, scale, cap, n, m, h, share, offset, low, high,
    sinks, s_qb, s_qh, s_qn, s_kb, s_kg, s_kn,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    CAPPED: tl.constexpr, SLOPED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sweep the keys that a block of queries may meet; masks only where the edge of a band is."""
    # The last rows of a causal rule have the most to do: they start first.
    row, bh = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    b, head = bh // h, bh % h
    o_at, o_d = tl.arange(0, BLOCK_N), tl.arange(0, D_PAD)
    o_n = row * BLOCK_N + o_at
    o_i = o_n + offset
    slope = 0.0
    if SLOPED:
        slope = tl.load(p_slopes + head)
    p_block = p_q + b.to(tl.int64) * s_qb + head * s_qh + (row * BLOCK_N).to(tl.int64) * s_qn
    # [BLOCK_N, D_PAD]
    b_q = tl.load(
        p_block + o_at[:, None] * s_qn + o_d[None, :],
        mask=(o_n[:, None] < n) & (o_d[None, :] < D), other=0.0,
    )  # fmt: skip
    p_head = p_k + b.to(tl.int64) * s_kb + (head // share) * s_kg
    b_top = tl.full([BLOCK_N], START, tl.float32)
    b_total = tl.zeros([BLOCK_N], tl.float32)
    b_inner = tl.zeros([BLOCK_N], tl.float32)
    # Blocks of keys: sinks, then the left edge, then those that every row meets, then the right.
    i_first, i_last = row * BLOCK_N + offset, row * BLOCK_N + BLOCK_N - 1 + offset
    stop = tl.cdiv(tl.maximum(tl.minimum(i_last + high + 1, m), 0), BLOCK_M)
    start = tl.minimum(tl.maximum(i_first + low, 0) // BLOCK_M, stop)
    full = tl.minimum(tl.cdiv(tl.maximum(i_last + low, 0), BLOCK_M), stop)
    edge = tl.maximum(tl.minimum(i_first + high + 1, m) // BLOCK_M, full)
    early = tl.minimum(tl.cdiv(sinks, BLOCK_M), start)
    for step in steps(0, early + full - start):
        block = tl.where(step < early, step, step - early + start)
        b_top, b_total, b_inner = _look(
            b_top, b_total, b_inner, b_q, p_head, s_kn, o_i, block, m, low, high, sinks, scale,
            cap, slope, D, D_PAD, BLOCK_M, CAPPED, SLOPED, True, WIDE,
        )  # fmt: skip
    for block in steps(full, edge):
        b_top, b_total, b_inner = _look(
            b_top, b_total, b_inner, b_q, p_head, s_kn, o_i, block, m, low, high, sinks, scale,
            cap, slope, D, D_PAD, BLOCK_M, CAPPED, SLOPED, False, WIDE,
        )  # fmt: skip
    for block in steps(edge, stop):
        b_top, b_total, b_inner = _look(
            b_top, b_total, b_inner, b_q, p_head, s_kn, o_i, block, m, low, high, sinks, scale,
            cap, slope, D, D_PAD, BLOCK_M, CAPPED, SLOPED, True, WIDE,
        )  # fmt: skip
    some = b_total > 0
    b_safe = tl.where(some, b_total, 1.0)
    b_log = tl.log2(b_safe)
    b_lse = tl.where(some, (b_top + b_log) * LN_2, float("-inf"))
    b_entropy = tl.where(some, (b_log - b_inner / b_safe) * LN_2, 0.0)
    p_row = bh.to(tl.int64) * n + o_n
    tl.store(p_lse + p_row, b_lse, mask=o_n < n)
    tl.store(p_entropy + p_row, tl.maximum(b_entropy, 0.0), mask=o_n < n)
    tl.store(p_max + p_row, tl.where(some, 1.0 / b_safe, 0.0), mask=o_n < n)
