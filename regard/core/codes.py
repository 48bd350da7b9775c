"""Numbers packed in few bits: codes, and what one step of a code is worth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
    """Unpack codes, and write them as numbers to out [..., d].

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


class Codes(NamedTuple):
    """Tokens x = low + code * step [b, g, m, size], their codes of `bits` bits packed by `pack`.

    codes uint8 [b, g, m, bytes]; low and step [b, g, m / group, size], by channel, or [b, g, m, 1],
    by token.

    >>> codes = pack(torch.tensor([[[[0, 1, 2], [3, 4, 5]]]], dtype=torch.uint8), 4)
    >>> low, step = torch.tensor([[1.0, 1.0], [2.0, 2.0]]).view(2, 1, 1, 2, 1)
    >>> Codes(codes, low, step, 4, 3).read(torch.float32)[0, 0].tolist()
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
        """Return the numbers [b, g, m, size]."""
        shape = (*self.codes.shape[:3], self.size)
        return self.write(self.codes.new_empty(shape, dtype=dtype))

    def write(self, out: Tensor) -> Tensor:
        """Write the numbers to out [b, g, m, size]."""
        if not out.numel():
            return out
        unpack(self.codes, self.bits, out)
        low, step = self.low.to(out.dtype), self.step.to(out.dtype)
        m, scales = self.codes.shape[2], low.shape[2]
        if m == scales:  # where one number is for all channels, two passes are faster than one
            out.mul_(step).add_(low)
        else:
            codes = out.view(*out.shape[:2], scales, m // scales, self.size)
            torch.addcmul(low[:, :, :, None], codes, step[:, :, :, None], out=codes)
        return out
