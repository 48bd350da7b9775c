"""Split-K decoding over packed tokens: codes are read, and become numbers in registers.

One program reads one split of the tokens of one key head, once, for all its query heads. Keys are
low + code * step by channel, so a block of scales serves a group of tokens. Values are so by token:
sum_j p_j (low_j + code_j step_j) = sum_j (p_j step_j) code_j + sum_j p_j low_j, so codes meet the
weights as they are. The exact tokens behind are one more split, by the kernel of `decode`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from regard.core.partial import Partial
from regard.run.triton.availability import interpreting
from regard.run.triton.decode import decode_into
from regard.run.triton.launch import PACKED, least_power, of_size, splits_of
from regard.run.triton.loops import LOG2_E, REMOVED, START, steps
from regard.run.triton.merging import made_whole, room
from regard.run.triton.online import weighed, written


@triton.jit
def _codes(p_codes, o_m, m_m, BYTES: tl.constexpr, BITS: tl.constexpr, PAD: tl.constexpr):
    """Read the codes of a block of tokens, [BLOCK_M, PAD]; byte i holds those of channel i
    (8 / BITS) and on, from its low bits up.
    """
    o_byte = tl.arange(0, PAD * BITS // 8)
    b_byte = tl.load(
        p_codes + o_m.to(tl.int64)[:, None] * BYTES + o_byte[None, :],
        mask=m_m[:, None] & (o_byte[None, :] < BYTES), other=0,
    )  # fmt: skip
    if BITS == 4:
        b_byte = tl.interleave(b_byte & 15, b_byte >> 4)
    if BITS == 2:
        b_even = tl.interleave(b_byte & 3, (b_byte >> 4) & 3)
        b_byte = tl.interleave(b_even, tl.interleave((b_byte >> 2) & 3, b_byte >> 6))
    return b_byte


@triton.jit(do_not_specialize=["groups"])
def _packed_kernel(
    p_q, p_k, p_k_low, p_k_step, p_v, p_v_low, p_v_step, p_out, p_lse, scale, groups, share,
    s_qb, s_qh, s_ob, s_oh, s_os, s_lb, s_lh, s_ls,
    D: tl.constexpr, E: tl.constexpr, D_PAD: tl.constexpr, E_PAD: tl.constexpr,
    K_BYTES: tl.constexpr, V_BYTES: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr,
    GROUP: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    split, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_row = tl.arange(0, ROWS)
    o_head, m_row = g * share + o_row, o_row < share
    o_d, o_e = tl.arange(0, D_PAD), tl.arange(0, E_PAD)
    o_span = tl.arange(0, BLOCK_M // SPAN)
    # [ROWS, D_PAD]
    b_q = tl.load(
        p_q + b * s_qb + o_head[:, None] * s_qh + o_d[None, :],
        mask=m_row[:, None] & (o_d[None, :] < D), other=0.0,
    )  # fmt: skip
    if WIDE:  # the interpreter multiplies bfloat16 wrongly
        b_q = b_q.to(tl.float32)
    # The tokens of this key head; told so, the compiler knows how they are aligned.
    m = groups * GROUP
    first = (b * tl.num_programs(1) + g) * m
    p_k, p_v = p_k + first * K_BYTES, p_v + first * V_BYTES
    o_low = (b * tl.num_programs(1) + g) * groups * D
    p_k_low, p_k_step = p_k_low + o_low, p_k_step + o_low
    p_v_low, p_v_step = p_v_low + first, p_v_step + first
    b_top = tl.full([ROWS], START, tl.float32)
    b_total = tl.zeros([ROWS], tl.float32)
    b_base = tl.zeros([ROWS], tl.float32)
    b_out = tl.zeros([ROWS, E_PAD], tl.float32)
    blocks = tl.cdiv(m, BLOCK_M)
    each = tl.cdiv(blocks, tl.num_programs(0))
    for block in steps(split * each, tl.minimum(split * each + each, blocks)):
        o_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
        m_m = o_m < m
        # [BLOCK_M, D_PAD]
        b_k = _codes(p_k, o_m, m_m, K_BYTES, K_BITS, D_PAD).to(tl.float32)
        # [BLOCK_M / SPAN, D_PAD]
        o_first = block * BLOCK_M + o_span * SPAN
        o_scale = (o_first // GROUP).to(tl.int64)[:, None] * D + o_d[None, :]
        m_scale = (o_first < m)[:, None] & (o_d[None, :] < D)
        b_low = tl.load(p_k_low + o_scale, mask=m_scale, other=0.0).to(tl.float32)
        b_step = tl.load(p_k_step + o_scale, mask=m_scale, other=0.0).to(tl.float32)
        # [BLOCK_M / SPAN, SPAN, D_PAD]
        b_k = tl.reshape(b_k, [BLOCK_M // SPAN, SPAN, D_PAD])
        b_k = b_k * b_step[:, None, :] + b_low[:, None, :]
        b_k = tl.reshape(b_k, [BLOCK_M, D_PAD]).to(b_q.dtype)
        # [ROWS, BLOCK_M]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        b_s = tl.where(m_m[None, :], b_s, REMOVED)
        b_top, b_total, b_p, b_old = weighed(b_top, b_total, b_s)
        # [BLOCK_M, E_PAD]
        b_v = _codes(p_v, o_m, m_m, V_BYTES, V_BITS, E_PAD)
        b_low = tl.load(p_v_low + o_m, mask=m_m, other=0.0).to(tl.float32)
        b_step = tl.load(p_v_step + o_m, mask=m_m, other=0.0).to(tl.float32)
        b_base = b_base * b_old + tl.sum(b_p * b_low[None, :], 1)
        b_p = b_p * b_step[None, :]
        # Whole numbers up to 256 are exact in bfloat16, and no product is too small for it.
        if b_q.dtype == tl.float32:
            b_v = b_v.to(tl.float32)
        else:
            b_v, b_p = b_v.to(tl.bfloat16), b_p.to(tl.bfloat16)
        # [ROWS, E_PAD]
        b_out = b_out * b_old[:, None] + tl.dot(b_p, b_v, input_precision="ieee")
    p_row = p_out + b * s_ob + o_head[:, None] * s_oh + split * s_os + o_e[None, :]
    p_rows = p_lse + b * s_lb + o_head * s_lh + split * s_ls
    written(p_row, p_rows, b_out + b_base[:, None], b_top, b_total, m_row, o_e < E)


def decode_packed(
    q: Tensor,
    k: tuple[Tensor, Tensor, Tensor],
    v: tuple[Tensor, Tensor, Tensor],
    bits: tuple[int, int],
    tail: tuple[Tensor, Tensor] | None = None,
    *,
    size: int,
    scale: float,
    splits: int | None = None,
) -> Partial:
    """Attend from single queries q [b, h, 1, d] to packed tokens, and to the exact `tail` of them.

    k are codes uint8 [b, g, m, bytes] with low and step float16 [b, g, m / group, d]; v are codes
    with low and step [b, g, m, 1], `size` channels wide; `bits` are those of a code of each.
    """
    b, h, _, d = q.shape
    g, m = k[0].shape[1:3]
    group = m // k[1].shape[2]
    launch = of_size(PACKED, max(d, size), q.element_size())
    block = min(launch.cols, least_power(m))
    splits = splits_of(m, block, b * g, splits)
    parts = room(q, size, splits + (tail is not None))
    q = q if q.stride(-1) == 1 else q.contiguous()
    out, lse = parts
    assert lse is not None
    if out.numel():
        _packed_kernel[(splits, g, b)](
            q, *(x.contiguous() for x in (*k, *v)), out, lse, scale * LOG2_E, k[1].shape[2], h // g,
            *q.stride()[:2], *out.stride()[:3], *lse.stride()[:3],
            D=d, E=size, D_PAD=least_power(d), E_PAD=least_power(size),
            K_BYTES=k[0].shape[3], V_BYTES=v[0].shape[3], K_BITS=bits[0], V_BITS=bits[1],
            GROUP=group, SPAN=min(group, block), ROWS=least_power(h // g), BLOCK_M=block,
            WIDE=interpreting(), num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    if tail is not None:
        behind = Partial(out[:, :, splits:], lse[:, :, splits:])
        last = tail[0].shape[2]
        decode_into(behind, q, *tail, scale=scale, first=last - 1, lengths=last)
    return made_whole(parts, q.dtype)
