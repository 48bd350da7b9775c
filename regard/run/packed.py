"""Decode over tokens packed in few bits: a call that a memory makes.

It runs in a Triton kernel on a GPU, which reads the codes, and elsewhere by writing the numbers out
and attending to them; `executor=` forces "triton" or "gathered".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ExecutorError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.score.matches import Dot
from regard.run.paged import by_kernel
from regard.run.plan import chosen

BITS = (8, 4, 2)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Put codes uint8 [..., d] below 2 ** bits together, 8 // bits to a byte.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
    [33, 3]
    """
    each = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % each))
    parts = codes.unflatten(-1, (-1, each))
    found: Tensor = parts[..., 0].clone()
    for place in range(1, each):
        found |= parts[..., place] << (bits * place)
    return found


def unpack(packed: Tensor, bits: int, out: Tensor) -> Tensor:
    """Take codes apart again, and write them as numbers to out [..., d].

    >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, torch.empty(3)).tolist()
    [1.0, 2.0, 3.0]
    """
    each, mask = 8 // bits, (1 << bits) - 1
    for place in range(each):
        part = packed >> (bits * place) if place else packed
        part = part & mask if place < each - 1 else part
        own = out[..., place::each]
        own.copy_(part[..., : own.shape[-1]])
    return out


class Packed(NamedTuple):
    """Tokens x = low + code * step [b, g, m, size], their codes of `bits` bits packed by `pack`.

    codes uint8 [b, g, m, bytes]; low and step [b, g, m / group, size], by channel, or [b, g, m, 1],
    by token.

    >>> codes = pack(torch.tensor([[[[0, 1, 2], [3, 4, 5]]]], dtype=torch.uint8), 4)
    >>> low, step = torch.tensor([[1.0, 1.0], [2.0, 2.0]]).view(2, 1, 1, 2, 1)
    >>> Packed(codes, low, step, 4, 3).read(torch.float32)[0, 0].tolist()
    [[1.0, 3.0, 5.0], [7.0, 9.0, 11.0]]
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    bits: int
    size: int

    @property
    def group(self) -> int:
        """Tokens that share low and step."""
        return self.codes.shape[2] // max(self.low.shape[2], 1)

    def read(self, dtype: torch.dtype) -> Tensor:
        """Give the numbers."""
        shape = (*self.codes.shape[:3], self.size)
        return self.write(self.codes.new_empty(shape, dtype=dtype))

    def write(self, out: Tensor) -> Tensor:
        """Write the numbers to out [b, g, m, size]."""
        if not out.numel():
            return out
        unpack(self.codes, self.bits, out)
        low, step = self.low.to(out.dtype), self.step.to(out.dtype)
        if self.group == 1:  # where one number is for all channels, two passes are faster than one
            out.mul_(step).add_(low)
        else:
            codes = out.unflatten(2, (-1, self.group))
            torch.addcmul(low[:, :, :, None], codes, step[:, :, :, None], out=codes)
        return out


def packed_partial(
    q: Tensor,
    k: Packed,
    v: Packed,
    tail: tuple[Tensor, Tensor] | None = None,
    *,
    scale: float | None = None,
    splits: int | None = None,
    executor: str | None = None,
) -> Partial:
    """Attend from single queries q [b, h, 1, d] to m packed tokens, and to an exact `tail`.

    Keys k are packed by channel, values v by token; `tail` holds keys [b, g, c, d] and values
    [b, g, c, e] that are not packed.

    >>> from regard.memories import Quantized
    >>> k, v = Quantized(4, "channel", 8, 0), Quantized(4, "token", 8, 0)
    >>> for store in (k, v): store.append(torch.randn(1, 2, 16, 4)); store.settle()
    >>> held = (Packed(*list(store.state().values())[:3], 4, 4) for store in (k, v))
    >>> packed_partial(torch.randn(1, 4, 1, 4), *held).out.shape
    torch.Size([1, 4, 1, 4])
    """
    _need_packed(q, k, v, tail)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    tensors = (q, *k[:3], *v[:3], *(tail or ()))
    group = k.group
    if group & (group - 1):
        if executor == "triton":
            fail(
                ExecutorError, "executor", f"'triton', with groups of {group} tokens",
                "groups that are a power of two", "leave it out, or pack by 32, say",
            )  # fmt: skip
        executor = "gathered"
    if by_kernel(executor, *tensors):
        from regard.run.triton.packed import decode_packed

        return decode_packed(
            q, k[:3], v[:3], (k.bits, v.bits), tail, size=v.size, scale=scale, splits=splits
        )
    keys, values = k.read(q.dtype), v.read(q.dtype)
    if tail is not None:
        keys, values = torch.cat((keys, tail[0]), 2), torch.cat((values, tail[1]), 2)
    call = Call(q, keys, values, Rule(score=Dot(scale)))
    return chosen(call, lse=True).run(call)


def _need_packed(q: Tensor, k: Packed, v: Packed, tail: tuple[Tensor, Tensor] | None) -> None:
    """Raise unless all belong together."""
    b, g, m = k.codes.shape[:3]
    if q.dim() != 4 or q.shape[0] != b or q.shape[2] != 1 or q.shape[1] % g or q.shape[3] != k.size:
        fail(
            ShapeError, "q", shape_of(q), f"[{b}, a multiple of {g}, 1, {k.size}]",
            "decode one token of each row at a time",
        )  # fmt: skip
    for name, x in (("k", k), ("v", v)):
        if x.bits not in BITS or x.codes.dtype != torch.uint8:
            fail(
                ValueRangeError, name, f"{x.bits} bits in {x.codes.dtype}", f"{BITS} in uint8",
                "pack codes by regard.run.packed.pack",
            )  # fmt: skip
        wide = -(-x.size * x.bits // 8)
        if x.codes.shape != (b, g, m, wide) or not m or x.low.shape != x.step.shape:
            fail(
                ShapeError, name, f"{list(x.codes.shape)} of size {x.size}",
                f"[{b}, {g}, {m}, {wide}], and low and step of one shape", "pack both alike",
            )  # fmt: skip
    if k.low.shape[:2] != (b, g) or k.low.shape[3] != k.size or m % max(k.low.shape[2], 1):
        fail(
            ShapeError, "k.low", shape_of(k.low), f"[{b}, {g}, m / group, {k.size}]",
            "pack keys by channel",
        )  # fmt: skip
    if v.low.shape != (b, g, m, 1):
        fail(ShapeError, "v.low", shape_of(v.low), f"[{b}, {g}, {m}, 1]", "pack values by token")
    if tail is not None and (
        tail[0].shape[:2] != (b, g)
        or tail[0].shape[3] != k.size
        or tail[1].shape != (*tail[0].shape[:3], v.size)
    ):
        fail(
            ShapeError, "tail", f"{shape_of(tail[0])}, {shape_of(tail[1])}",
            f"[{b}, {g}, c, {k.size}] and [{b}, {g}, c, {v.size}]", "give keys and values",
        )  # fmt: skip


__all__ = ["BITS", "Packed", "pack", "packed_partial", "unpack"]
