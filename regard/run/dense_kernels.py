"""The dense kernels PyTorch has, as one differentiable function that also gives the lse.

`scaled_dot_product_attention` hides its lse, and its gradient ignores it. Both matter here: parts
are merged by their lse. This module calls the kernels below it, forward and backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from regard.core.autocast import without_autocast
from regard.core.heads import expand_heads
from regard.core.partial import Partial, finite, wide
from regard.run.counting import count
from regard.run.transforms import no_second_derivative

_aten = torch.ops.aten


class Shape(NamedTuple):
    """How a dense call is shaped: `scale`, and whether row i meets keys j <= i only."""

    scale: float
    causal: bool = False


def dense(q: Tensor, k: Tensor, v: Tensor, shape: Shape, mask: Tensor | None = None) -> Partial:
    """Attend densely: q [b, h, n, d], k, v [b, g, m, d], `mask` additive, like q, [b, h, n, m].

    A mask is not differentiated. Rows that meet no key give zeros and lse = -inf.
    """
    out, lse = _Dense.apply(q, k, v, shape, mask)  # type: ignore[no-untyped-call]
    return Partial(out, lse)


class _Dense(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, shape: Shape, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out, lse = forward(q, k, v, shape, mask)
        ctx.save_for_backward(q, k, v, out, lse, mask)
        ctx.shape = shape
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, mask = ctx.saved_tensors
        if torch.is_grad_enabled():
            no_second_derivative("fused")
        with without_autocast(q.device):
            grads = backward(d_out, d_lse, q, k, v, out, lse, ctx.shape, mask)
        return (*grads, None, None)


def forward(
    q: Tensor, k: Tensor, v: Tensor, shape: Shape, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the kernel: out [b, h, n, e] and lse [b, h, n], without autograd."""
    e = v.shape[-1]
    q, k, v = _one_size(q, k, v)
    if 0 in q.shape or k.shape[2] == 0:
        out = torch.zeros_like(q[..., :e])
        return out, torch.full(q.shape[:3], -torch.inf, dtype=wide(q.dtype), device=q.device)
    count_dense(q, k, v, causal=shape.causal)
    if q.device.type == "cpu":
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, shape.causal, attn_mask=_four(mask, q), scale=shape.scale
        )
    else:
        out, lse = _cuda_forward(q, k, v, shape, mask)
    lse = lse[:, :, : q.shape[2]]
    if mask is not None:
        # Kernels differ in what they call the lse of a row without keys.
        empty = (mask == -torch.inf).all(-1)
        if mask.device.type != "cpu" or bool(empty.any()):  # on a GPU looking would cost a wait
            lse = lse.masked_fill(empty, -torch.inf)
            out = out.masked_fill(empty[..., None], 0.0)
    return out[..., :e], lse


def count_dense(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> None:
    """Count a dense kernel over q [b, h, n, d], k [b, g, m, d], v [b, g, m, e]: pairs it scores.

    A causal kernel skips what lies above the diagonal; the blocks on it are counted by half.
    """
    (b, h, n, d), m, e = q.shape, k.shape[2], v.shape[3]
    pairs = n * m
    if causal:
        below = min(n, m)
        pairs = below * (below + 1) // 2 + (n - below) * m
    size = q.element_size()
    moved = size * (b * h * n * (d + e) + b * k.shape[1] * m * (d + e))
    count(float(b * h * pairs), d + e, float(moved))


def backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    shape: Shape,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv of these keys; `out` and `lse` may be those of a larger set of keys.

    The kernels know ds = p (dp - sum(d_out out)). A gradient of the lse adds to dp, for which an
    extra channel of v is all ones, and d_out carries d_lse in it.
    """
    d, e = q.shape[-1], v.shape[-1]
    if 0 in q.shape or k.shape[2] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if d_lse is not None and bool((d_lse != 0).any()):
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        d_lse = torch.where(lse == -torch.inf, 0.0, d_lse)
        d_out = torch.cat([d_out, d_lse[..., None].to(d_out)], -1)
        out = torch.cat([out, torch.zeros_like(out[..., :1])], -1)
    h, g = q.shape[1], k.shape[1]
    q, k, v = _one_size(q, k, v)
    d_out, out = (_padded(x, q.shape[-1]) for x in (d_out, out))
    lse = finite(lse)
    if q.device.type == "cpu":
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d_out, q, k, v, out, lse, 0.0, shape.causal, attn_mask=_four(mask, q), scale=shape.scale
        )
    else:
        k, v = expand_heads(k, h), expand_heads(v, h)
        dq, dk, dv = _cuda_backward(d_out, q, k, v, out, lse, shape, mask)
        dk, dv = (x.unflatten(1, (g, h // g)).sum(2) for x in (dk, dv))
    return dq[..., :d], dk[..., :d], dv[..., :e]


def _padded(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else torch.nn.functional.pad(x, (0, size - x.shape[-1]))


def _one_size(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pad head sizes with zeros to the one size that the kernels want, and to their multiple."""
    multiple = 1 if q.device.type == "cpu" else 8
    size = max(q.shape[-1], v.shape[-1])
    size += -size % multiple
    q, k, v = _padded(q, size), _padded(k, size), _padded(v, size)
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # type: ignore[return-value]


def _four(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Convert a mask to q's dtype."""
    return None if mask is None else mask.to(q.dtype)


# The CUDA side: Flash for half precision without a mask, memory-efficient attention otherwise.


def _flashes(q: Tensor, mask: Tensor | None) -> bool:
    return mask is None and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256


def _bias(mask: Tensor | None, q: Tensor, m: int) -> Tensor | None:
    """Expand a mask as the memory-efficient kernel wants it: rows aligned to 16 bytes."""
    if mask is None:
        return None
    short = -m % 8
    room = torch.nn.functional.pad(mask.to(q.dtype), (0, short))
    return room[..., :m].expand(q.shape[0], q.shape[1], q.shape[2], m)


def _cuda_forward(
    q: Tensor, k: Tensor, v: Tensor, shape: Shape, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    k, v = expand_heads(k, q.shape[1]), expand_heads(v, q.shape[1])
    if _flashes(q, mask):
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, shape.causal, False, scale=shape.scale
        )
        return out, lse
    out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
        q, k, v, _bias(mask, q, k.shape[2]), True, 0.0, shape.causal, scale=shape.scale
    )
    return out, lse


def _cuda_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    shape: Shape,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    seed = torch.zeros((), dtype=torch.int64, device=q.device)
    if _flashes(q, mask):
        lengths = q.shape[2], k.shape[2]
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
            d_out,
            q,
            k,
            v,
            out,
            lse.contiguous(),
            None,
            None,
            *lengths,
            0.0,
            shape.causal,
            seed,
            seed,
            scale=shape.scale,
        )
        return dq, dk, dv
    # The kernel reads lse in rows rounded up to 32.
    room = torch.nn.functional.pad(lse.float(), (0, -lse.shape[-1] % 32), value=torch.inf)
    dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
        d_out,
        q,
        k,
        v,
        _bias(mask, q, k.shape[2]),
        out,
        room,
        seed,
        seed,
        0.0,
        [True, True, True, False],
        shape.causal,
        scale=shape.scale,
    )
    return dq, dk, dv
