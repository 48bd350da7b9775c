"""Survey in two sweeps without atomics: rows first (lse, entropy), then columns (received, tiles).

The first sweep keeps, for each block of queries, the running top, total and sum of e^s s, which
give lse and entropy. The second walks each block of keys down its queries; with the lse known,
weights are exact, and sums over queries stay in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.core.call import Call
from regard.core.score.biases import Alibi, SoftCap
from regard.core.score.matches import DotMatch
from regard.core.weigh import Softmax
from regard.run.bands import band_of
from regard.run.executor import Answer, No, Yes
from regard.run.triton.here import interpreting, why_not_here

ANSWERS = ("lse", "entropy", "received", "tiles", "sinks")


@triton.jit
def _scores(
    b_q, b_k, o_i, o_j, m, n_stop, low, high, sinks, scale, cap, slope,
    CAPPED: tl.constexpr, SLOPED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    if WIDE:  # the interpreter multiplies bfloat16 wrongly
        b_q, b_k = b_q.to(tl.float32), b_k.to(tl.float32)
    # [BLOCK_N, BLOCK_M]
    b_s = tl.dot(b_q, b_k, input_precision="ieee") * scale
    apart = o_j[None, :] - o_i[:, None]
    if SLOPED:
        b_s -= slope * tl.abs(apart).to(tl.float32)
    if CAPPED:
        # tanh by the exponential: 1 - 2 / (e^2x + 1)
        b_s = cap * (1.0 - 2.0 / (tl.exp(2.0 * b_s / cap) + 1.0))
    met = (apart <= high) & ((apart >= low) | (o_j[None, :] < sinks))
    met = met & (o_j[None, :] < m) & (o_i[:, None] < n_stop)
    return tl.where(met, b_s, float("-inf"))


@triton.jit
def _rows_kernel(
    p_q, p_k, p_slopes, p_lse, p_entropy, p_max, scale, cap, n, m, h, share, offset, low, high,
    sinks, s_qb, s_qh, s_qn, s_kb, s_kg, s_kn,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    CAPPED: tl.constexpr, SLOPED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, bh = tl.program_id(0), tl.program_id(1)
    b, head = bh // h, bh % h
    o_n = row * BLOCK_N + tl.arange(0, BLOCK_N)
    o_i, o_d = o_n + offset, tl.arange(0, D_PAD)
    slope = 0.0
    if SLOPED:
        slope = tl.load(p_slopes + head)
    # [BLOCK_N, D_PAD]
    b_q = tl.load(
        p_q + b.to(tl.int64) * s_qb + head * s_qh + o_n[:, None] * s_qn + o_d[None, :],
        mask=(o_n[:, None] < n) & (o_d[None, :] < D), other=0.0,
    )  # fmt: skip
    b_head = b.to(tl.int64) * s_kb + (head // share) * s_kg
    b_top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_N], tl.float32)
    b_inner = tl.zeros([BLOCK_N], tl.float32)
    first = tl.maximum(row * BLOCK_N + offset + low, 0) // BLOCK_M * BLOCK_M
    at = tl.where(sinks > 0, 0, first)
    stop = tl.minimum(m, row * BLOCK_N + BLOCK_N + offset + high)
    while at < stop:
        o_j = at + tl.arange(0, BLOCK_M)
        # [D_PAD, BLOCK_M]
        b_k = tl.load(
            p_k + b_head + o_j[None, :] * s_kn + o_d[:, None],
            mask=(o_j[None, :] < m) & (o_d[:, None] < D), other=0.0,
        )  # fmt: skip
        b_s = _scores(
            b_q, b_k, o_i, o_j, m, n + offset, low, high, sinks, scale, cap, slope, CAPPED, SLOPED,
            WIDE,
        )  # fmt: skip
        b_new = tl.maximum(b_top, tl.max(b_s, 1))
        b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp(b_s - b_safe[:, None])
        b_old = tl.exp(b_top - b_safe)
        b_total = b_total * b_old + tl.sum(b_p, 1)
        b_inner = b_inner * b_old + tl.sum(b_p * tl.where(b_p > 0, b_s, 0.0), 1)
        b_top = b_new
        at += BLOCK_M
    some = b_total > 0
    b_safe = tl.where(some, b_total, 1.0)
    b_lse = tl.where(some, b_top + tl.log(b_safe), float("-inf"))
    b_flat = tl.where(some, b_lse - b_inner / b_safe, 0.0)
    o_out = bh * n + o_n
    tl.store(p_lse + o_out, b_lse, mask=o_n < n)
    tl.store(p_entropy + o_out, tl.maximum(b_flat, 0.0), mask=o_n < n)
    tl.store(p_max + o_out, tl.where(some, 1.0 / b_safe, 0.0), mask=o_n < n)


@triton.jit
def _columns_kernel(
    p_q, p_k, p_slopes, p_lse, p_received, p_sum, p_max, scale, cap, n, m, h, share, offset, low,
    high, sinks, t_q, t_k, s_qb, s_qh, s_qn, s_kb, s_kg, s_kn,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, CAPPED: tl.constexpr,
    SLOPED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    col, bh = tl.program_id(0), tl.program_id(1)
    b, head = bh // h, bh % h
    o_j, o_d = col * TILE + tl.arange(0, TILE), tl.arange(0, D_PAD)
    slope = 0.0
    if SLOPED:
        slope = tl.load(p_slopes + head)
    # [D_PAD, TILE]
    b_k = tl.load(
        p_k + b.to(tl.int64) * s_kb + (head // share) * s_kg + o_j[None, :] * s_kn + o_d[:, None],
        mask=(o_j[None, :] < m) & (o_d[:, None] < D), other=0.0,
    )  # fmt: skip
    b_received = tl.zeros([TILE], tl.float32)
    # Queries that can meet a key of this block: j - high <= i <= j - low, or all after a sink.
    first = tl.maximum(col * TILE - high - offset, 0) // TILE
    last = tl.minimum(t_q, (col * TILE + TILE - 1 - low - offset) // TILE + 1)
    last = tl.where(col * TILE < sinks, t_q, last)
    at = first
    while at < last:
        o_n = at * TILE + tl.arange(0, TILE)
        # [TILE, D_PAD]
        b_q = tl.load(
            p_q + b.to(tl.int64) * s_qb + head * s_qh + o_n[:, None] * s_qn + o_d[None, :],
            mask=(o_n[:, None] < n) & (o_d[None, :] < D), other=0.0,
        )  # fmt: skip
        b_lse = tl.load(p_lse + bh * n + o_n, mask=o_n < n, other=0.0)
        b_lse = tl.where(b_lse == float("-inf"), 0.0, b_lse)
        b_s = _scores(
            b_q, b_k, o_n + offset, o_j, m, n + offset, low, high, sinks, scale, cap, slope, CAPPED,
            SLOPED, WIDE,
        )  # fmt: skip
        b_p = tl.exp(b_s - b_lse[:, None])
        b_received += tl.sum(b_p, 0)
        o_tile = (bh.to(tl.int64) * t_q + at) * t_k + col
        tl.store(p_sum + o_tile, tl.sum(tl.sum(b_p, 1), 0))
        tl.store(p_max + o_tile, tl.max(tl.max(b_p, 1), 0))
        at += 1
    tl.store(p_received + bh * m + o_j, b_received, mask=o_j < m)


def can_survey(call: Call, want: tuple[str, ...], tile: int) -> Answer:
    """Say whether the kernels answer `want` for a call, or why not."""
    reason = why_not_here(call.q.device)
    if reason:
        return No(reason)
    other = [w for w in want if w not in ANSWERS]
    if other:
        return No(f"the kernel does not give {other[0]!r}")
    if type(call.rule.weigh) is not Softmax or call.rule.weigh.closes:
        return No(f"weighs by {call.rule.weigh}, and the kernel only by softmax without a sink")
    if not isinstance(call.rule.score.match, DotMatch):
        return No(f"{call.rule.score.match} is not in the kernel")
    kinds = [type(s) for s in call.rule.score.steps]
    if kinds not in ([], [SoftCap], [Alibi], [Alibi, SoftCap]):
        return No(f"{call.rule.score} is not in the kernel")
    if band_of(call.rule.support) is None or call.placed:
        return No(f"{call.rule.support} is no band with sinks")
    if tile not in (16, 32, 64, 128):
        return No(f"tiles of {tile}, and the kernel makes 16, 32, 64 or 128")
    if call.q.dtype == torch.float64:
        return No("it sums in float32")
    return Yes("interpreted: right, and slow" if interpreting() else "")


def run_survey(call: Call, tile: int) -> dict[str, Tensor]:
    """Run both sweeps; everything in float32."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (call.q, call.k))
    band = band_of(call.rule.support)
    made = call.rule.score.match.prepare(q, k)
    assert band is not None
    assert made is not None
    b, h, n, m, device = call.b, call.h, call.n, call.m, q.device
    t_q, t_k = triton.cdiv(n, tile), triton.cdiv(m, tile)
    steps = {type(s): s for s in call.rule.score.steps}
    cap, alibi = steps.get(SoftCap), steps.get(Alibi)
    slopes = (
        alibi.slopes.to(device, torch.float32).expand(h).contiguous()
        if isinstance(alibi, Alibi)
        else q
    )
    like = torch.empty(0, dtype=torch.float32, device=device)
    lse, entropy, row_max = (like.new_empty(b, h, n) for _ in range(3))
    received = like.new_empty(b, h, m)
    tile_sum, tile_max = (like.new_zeros(b, h, t_q, t_k) for _ in range(2))
    shared = {
        "D": call.d, "D_PAD": max(16, triton.next_power_of_2(call.d)),
        "CAPPED": cap is not None, "SLOPED": alibi is not None, "WIDE": interpreting(),
    }  # fmt: skip
    size = (made[2], cap.cap if isinstance(cap, SoftCap) else 1.0, n, m, h, h // call.g)
    where = (call.rule.offset, band.low, band.high, band.sinks)
    strides = (*q.stride()[:3], *k.stride()[:3])
    block = min(128, max(16, tile))
    _rows_kernel[(triton.cdiv(n, block), b * h)](
        q, k, slopes, lse, entropy, row_max, *size, *where, *strides,
        BLOCK_N=block, BLOCK_M=min(block, 64), **shared,
    )  # fmt: skip
    _columns_kernel[(t_k, b * h)](
        q, k, slopes, lse, received, tile_sum, tile_max, *size, *where, t_q, t_k, *strides,
        TILE=tile, **shared,
    )  # fmt: skip
    seen = band.seen(n, m, call.rule.offset, device).to(torch.float32).expand(b, h, m)
    return {
        "lse": lse, "entropy": entropy, "received": received, "seen": seen, "tile_sum": tile_sum,
        "tile_max": tile_max, "row_max": row_max,
    }  # fmt: skip
