"""Tokens in 8, 4 or 2 bits, packed: keys by channel, values by token, the newest as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.codes import BITS, Codes, pack
from regard.core.errors import ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.key_forms import Packed
from regard.core.keys import At, Keys
from regard.memories.stores import TokenStore


class Quantized(TokenStore):
    """Codes of `bits` bits, x = low + code * step, with low and step in float16.

    `by="channel"` shares them among `group` tokens in a row, channel by channel (keys, whose
    outliers stand in few channels); `by="token"` among the channels of a token (values). The
    newest `residual` tokens, and those that fill no group, stay exact. What came with the last
    call is exact until `settle`.

    >>> store = Quantized(4, "token", group=8, residual=0)
    >>> store.append(torch.linspace(0, 15, 16).expand(1, 1, 8, 16)); store.settle()
    >>> store.nbytes, float((store.read() - torch.linspace(0, 15, 16)).abs().max())
    (96, 0.0)
    """

    def __init__(self, bits: int, by: str, group: int = 32, residual: int = 32) -> None:
        if bits not in BITS:
            fail(ValueRangeError, "bits", bits, f"one of {BITS}", "pass bits=4, say")
        if by not in ("channel", "token"):
            fail(ValueRangeError, "by", repr(by), "'channel' or 'token'", "keys go by channel")
        if group < 1 or residual < 0:
            fail(
                ValueRangeError, "group, residual", (group, residual), "at least 1 and 0",
                "pass group=32, residual=32",
            )  # fmt: skip
        self.bits, self.by, self.group, self.residual = bits, by, group, residual
        # Codes [b, h, m, bytes]; low and step [b, h, m / group, d] or [b, h, m, 1].
        self._codes: Tensor | None = None
        self._low: Tensor | None = None
        self._step: Tensor | None = None
        self._tail: Tensor | None = None

    @property
    def _packed(self) -> int:
        return 0 if self._codes is None else self._codes.shape[2]

    def __len__(self) -> int:
        return self._packed + (0 if self._tail is None else self._tail.shape[2])

    def append(self, x: Tensor) -> None:
        """Keep it exact for now."""
        self._tail = x if self._tail is None else torch.cat((self._tail, x), 2)

    def settle(self) -> None:
        """Pack all full groups but the newest tokens."""
        if self._tail is None or not self._tail.shape[3]:
            return
        n = max(self._tail.shape[2] - self.residual, 0) // self.group * self.group
        if n:
            old, self._tail = self._tail[:, :, :n], self._tail[:, :, n:].clone()
            made = self._coded(old)
            held = (self._codes, self._low, self._step)
            self._codes, self._low, self._step = (
                new if was is None else torch.cat((was, new), 2)
                for was, new in zip(held, made, strict=True)
            )
        elif self._tail.untyped_storage().nbytes() > self._tail.nbytes:
            self._tail = self._tail.clone()

    def _coded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().float()
        grouped = x.unflatten(2, (-1, self.group))  # [b, h, groups, group, d]
        axis = 3 if self.by == "channel" else 4
        low, high = grouped.aminmax(dim=axis, keepdim=True)
        low = low.half()
        step = ((high - low.float()) / ((1 << self.bits) - 1)).half()
        # float16 may round the step down to nothing, where all is one value.
        safe = torch.where(step > 0, step, 1.0).float()
        codes = ((grouped - low.float()) / safe).round().clamp(0, (1 << self.bits) - 1)
        packed = pack(codes.to(torch.uint8).flatten(2, 3), self.bits)
        return packed, low.flatten(2, 3), step.flatten(2, 3)

    def read(self) -> Tensor:
        """Give low + code * step, and the exact tokens behind."""
        if self._tail is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        packed, tail, m = self._held, self._tail, self._packed
        if packed is None:
            return tail
        if tail.requires_grad:
            return torch.cat((packed.read(tail.dtype), tail), 2)
        made = tail.new_empty(*tail.shape[:2], m + tail.shape[2], tail.shape[3])
        packed.write(made[:, :, :m])
        made[:, :, m:] = tail
        return made

    @property
    def _held(self) -> Codes | None:
        """What is packed."""
        if self._codes is None or self._low is None or self._step is None or self._tail is None:
            return None
        return Codes(self._codes, self._low, self._step, self.bits, self._tail.shape[3])

    def with_values(self, values: TokenStore, at: At) -> Keys:
        """Return codes, where keys go by channel, values by token, and equally many are packed."""
        if isinstance(values, Quantized) and self.by == "channel" and values.by == "token":
            k, v, k_tail, v_tail = self._held, values._held, self._tail, values._tail
            if k is not None and v is not None and k_tail is not None and v_tail is not None:
                plain = k_tail.requires_grad or v_tail.requires_grad
                if 0 < self._packed == values._packed and not plain:
                    return Packed(k, v, (k_tail, v_tail), at)
        return super().with_values(values, at)

    def empty(self) -> Quantized:
        """Make another with the same settings."""
        return Quantized(self.bits, self.by, self.group, self.residual)

    def crop(self, m: int) -> None:
        """Forget the end; a group that is cut becomes exact tokens, as rounded as they were."""
        if m >= len(self):
            return
        if m >= self._packed and self._tail is not None:
            self._tail = self._tail[:, :, : m - self._packed]
            return
        whole = m // self.group * self.group
        self._tail = self.read()[:, :, whole:m].clone()
        assert self._codes is not None
        assert self._low is not None
        assert self._step is not None
        scales = whole // self.group if self.by == "channel" else whole
        self._codes = self._codes[:, :, :whole].clone()
        self._low, self._step = (x[:, :, :scales].clone() for x in (self._low, self._step))

    def reorder(self, rows: Tensor) -> None:
        """Take rows."""
        held = (self._codes, self._low, self._step, self._tail)
        self._codes, self._low, self._step, self._tail = (
            None if x is None else take_batch(x, rows) for x in held
        )

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and exact tokens."""
        held = (self._codes, self._low, self._step, self._tail)
        return sum(x.untyped_storage().nbytes() for x in held if x is not None)

    def state(self) -> dict[str, Any]:
        """Give codes, scales and exact tokens."""
        return {"codes": self._codes, "low": self._low, "step": self._step, "tail": self._tail}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them."""
        self._codes, self._low, self._step, self._tail = (
            state[x] for x in ("codes", "low", "step", "tail")
        )


__all__ = ["BITS", "Quantized"]
