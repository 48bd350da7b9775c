"""Second sweep of a survey: each block of keys down its queries, for received mass and tiles.

With the lse known weights are exact, so nothing is rescaled: 2^(score - lse). Keys lie along the
rows of a tile, so that sums over queries stay within a warp, and nothing needs an atomic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from regard.run.triton.loops import LN_2, steps
from regard.run.triton.survey_rows import scores


@triton.jit
def _look(
    b_received, b_k, p_q, s_qn, p_lse, p_sum, p_max, o_j, col, block, n, m, offset, low, high,
    sinks, t_k, scale, cap, slope,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
    CAPPED: tl.constexpr, SLOPED: tl.constexpr, MASKED: tl.constexpr, TILES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Add what one tile of queries gives to each key; write the tiles it makes with them."""
    o_at, o_d = tl.arange(0, TILE), tl.arange(0, D_PAD)
    o_n = block * TILE + o_at
    p_block = p_q + tl.cast(block, tl.int64) * TILE * s_qn
    # [D_PAD, TILE]
    b_q = tl.load(
        p_block + o_at[None, :] * s_qn + o_d[:, None],
        mask=(o_n[None, :] < n) & (o_d[:, None] < D), other=0.0,
    )  # fmt: skip
    b_lse = tl.load(p_lse + o_n, mask=o_n < n, other=0.0)
    b_lse = tl.where(b_lse == float("-inf"), 0.0, b_lse / LN_2)
    o_i = o_n + offset
    apart = o_j[:, None] - o_i[None, :]
    met = (apart <= high) & ((apart >= low) | (o_j[:, None] < sinks))
    met = met & (o_j[:, None] < m) & (o_n[None, :] < n)
    # [BLOCK_M, TILE]
    b_s = scores(
        b_k, b_q, o_i[None, :], o_j[:, None], met, scale, cap, slope, CAPPED, SLOPED, MASKED, WIDE
    )
    b_p = tl.exp2(b_s - b_lse[None, :])
    b_sum = tl.sum(b_p, 1)
    if TILES:
        # [BLOCK_M / TILE]
        b_tile = tl.sum(tl.reshape(b_sum, [BLOCK_M // TILE, TILE]), 1)
        b_most = tl.max(tl.reshape(tl.max(b_p, 1), [BLOCK_M // TILE, TILE]), 1)
        o_t = col * (BLOCK_M // TILE) + tl.arange(0, BLOCK_M // TILE)
        p_row = tl.cast(block, tl.int64) * t_k + o_t
        tl.store(p_sum + p_row, b_tile, mask=o_t < t_k)
        tl.store(p_max + p_row, b_most, mask=o_t < t_k)
    return b_received + b_sum


@triton.jit
def columns_kernel(
    p_q, p_k, p_slopes, p_lse, p_received, p_sum, p_max, scale, cap, n, m, h, share, offset, low,
    high, sinks, t_q, t_k, s_qb, s_qh, s_qn, s_kb, s_kg, s_kn,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
    CAPPED: tl.constexpr, SLOPED: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sweep the queries that may meet a block of keys; masks only where the edge of a band is."""
    col, bh = tl.program_id(0), tl.program_id(1)
    b, head = bh // h, bh % h
    o_at, o_d = tl.arange(0, BLOCK_M), tl.arange(0, D_PAD)
    o_j = col * BLOCK_M + o_at
    slope = 0.0
    if SLOPED:
        slope = tl.load(p_slopes + head)
    p_block = p_k + b.to(tl.int64) * s_kb + (head // share) * s_kg
    p_block += (col * BLOCK_M).to(tl.int64) * s_kn
    # [BLOCK_M, D_PAD]
    b_k = tl.load(
        p_block + o_at[:, None] * s_kn + o_d[None, :],
        mask=(o_j[:, None] < m) & (o_d[None, :] < D), other=0.0,
    )  # fmt: skip
    p_head = p_q + b.to(tl.int64) * s_qb + head * s_qh
    p_lses = p_lse + bh.to(tl.int64) * n
    p_sums, p_maxes = (p_sum + bh.to(tl.int64) * t_q * t_k), (p_max + bh.to(tl.int64) * t_q * t_k)
    b_received = tl.zeros([BLOCK_M], tl.float32)
    # Tiles of queries: the upper edge, then those that meet every key, then the lower edge.
    j_first, j_last = col * BLOCK_M - offset, col * BLOCK_M + BLOCK_M - 1 - offset
    stop = tl.cdiv(tl.maximum(tl.minimum(j_last - low + 1, n), 0), TILE)
    stop = tl.where(col * BLOCK_M < sinks, t_q, stop)
    start = tl.minimum(tl.maximum(j_first - high, 0) // TILE, stop)
    full = tl.minimum(tl.cdiv(tl.maximum(j_last - high, 0), TILE), stop)
    edge = tl.maximum(tl.minimum(j_first - low + 1, n) // TILE, full)
    edge = tl.where(col * BLOCK_M + BLOCK_M > m, full, tl.minimum(edge, stop))
    for block in steps(start, full):
        b_received = _look(
            b_received, b_k, p_head, s_qn, p_lses, p_sums, p_maxes, o_j, col, block, n, m, offset,
            low, high, sinks, t_k, scale, cap, slope, D, D_PAD, BLOCK_M, TILE, CAPPED, SLOPED, True,
            TILES, WIDE,
        )  # fmt: skip
    for block in steps(full, edge):
        b_received = _look(
            b_received, b_k, p_head, s_qn, p_lses, p_sums, p_maxes, o_j, col, block, n, m, offset,
            low, high, sinks, t_k, scale, cap, slope, D, D_PAD, BLOCK_M, TILE, CAPPED, SLOPED,
            False, TILES, WIDE,
        )  # fmt: skip
    for block in steps(edge, stop):
        b_received = _look(
            b_received, b_k, p_head, s_qn, p_lses, p_sums, p_maxes, o_j, col, block, n, m, offset,
            low, high, sinks, t_k, scale, cap, slope, D, D_PAD, BLOCK_M, TILE, CAPPED, SLOPED, True,
            TILES, WIDE,
        )  # fmt: skip
    tl.store(p_received + bh.to(tl.int64) * m + o_j, b_received, mask=o_j < m)
