"""Tokens quantized to 8, 4 or 2 bits: keys by channel, values by token, the newest exact."""

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

    With `by="channel"` they are shared by `group` consecutive tokens of a channel (keys, whose
    outliers are in few channels); with `by="token"` by the channels of a token (values). The newest
    `residual` tokens, and an incomplete group, stay exact, and everything is exact until `settle`.

    >>> store = Quantized(4, "token", group=8, residual=0)
    >>> store.append(torch.linspace(0, 15, 16).expand(1, 1, 8, 16)); store.settle()
    >>> store.nbytes, float((store.read() - torch.linspace(0, 15, 16)).abs().max())
    (96, 0.0)
    """

    def __init__(self, bits: int, by: str, group: int = 32, residual: int = 32) -> None:
        if bits not in BITS:
            fail(ValueRangeError, "bits", bits, f"one of {BITS}", "pass bits=4")
        if by not in ("channel", "token"):
            fail(ValueRangeError, "by", repr(by), "'channel' or 'token'", "keys go by channel")
        if group < 1 or residual < 0:
            fail(
                ValueRangeError, "group, residual", (group, residual), "at least 1 and 0",
                "pass group=32, residual=32",
            )  # fmt: skip
        self.bits, self.by, self.group, self.residual = bits, by, group, residual
        # The packed tokens, and their number; the exact tokens after them.
        self._held: Codes | None = None
        self._packed = 0
        self._tail: Tensor | None = None

    def __len__(self) -> int:
        return self._packed + (0 if self._tail is None else self._tail.shape[2])

    def _hold(self, codes: Codes | None) -> None:
        """Replace the codes."""
        self._held, self._packed = codes, 0 if codes is None else codes.codes.shape[2]

    def append(self, x: Tensor) -> None:
        """Append x [b, h, n, d], exact until `settle`."""
        first = self._tail is None
        self._tail = x if self._tail is None else torch.cat((self._tail, x), 2)
        self.loose = first or self._tail.shape[2] >= self.residual + self.group

    def settle(self) -> None:
        """Pack all full groups but the newest tokens."""
        self.loose = False
        if self._tail is None or not self._tail.shape[3]:
            return
        n = max(self._tail.shape[2] - self.residual, 0) // self.group * self.group
        if n:
            old, self._tail = self._tail[:, :, :n], self._tail[:, :, n:].clone()
            made, held = self._coded(old), self._held
            if held is not None:
                codes, low, step = (
                    torch.cat(both, 2) for both in zip(held[:3], made[:3], strict=True)
                )
                made = made._replace(codes=codes, low=low, step=step)
            self._hold(made)
        elif self._tail.untyped_storage().nbytes() > self._tail.nbytes:
            self._tail = self._tail.clone()

    def _coded(self, x: Tensor) -> Codes:
        x = x.detach().float()
        grouped = x.unflatten(2, (-1, self.group))  # [b, h, groups, group, d]
        axis = 3 if self.by == "channel" else 4
        low, high = grouped.aminmax(dim=axis, keepdim=True)
        low = low.half()
        step = ((high - low.float()) / ((1 << self.bits) - 1)).half()
        # float16 may round the step to zero, where all values are equal.
        safe = torch.where(step > 0, step, 1.0).float()
        codes = ((grouped - low.float()) / safe).round().clamp(0, (1 << self.bits) - 1)
        packed = pack(codes.to(torch.uint8).flatten(2, 3), self.bits)
        return Codes(packed, low.flatten(2, 3), step.flatten(2, 3), self.bits, x.shape[3])

    def read(self) -> Tensor:
        """Return low + code * step, followed by the exact tokens."""
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

    def with_values(self, values: TokenStore, at: At) -> Keys:
        """Return codes, where keys are by channel, values by token, and equally many are packed."""
        if type(values) is Quantized and self.by == "channel" and values.by == "token":
            k, v, k_tail, v_tail = self._held, values._held, self._tail, values._tail
            if k is not None and v is not None and k_tail is not None and v_tail is not None:
                plain = k_tail.requires_grad or v_tail.requires_grad
                if 0 < self._packed == values._packed and not plain:
                    return Packed(k, v, (k_tail, v_tail), at)
        return super().with_values(values, at)

    def empty(self) -> Quantized:
        """Return another with the same settings."""
        return Quantized(self.bits, self.by, self.group, self.residual)

    def crop(self, m: int) -> None:
        """Drop the end; a split group becomes exact tokens with its rounded values."""
        if m >= len(self):
            return
        if m >= self._packed and self._tail is not None:
            self._tail = self._tail[:, :, : m - self._packed]
            return
        whole = m // self.group * self.group
        self._tail = self.read()[:, :, whole:m].clone()
        held = self._held
        assert held is not None
        scales = whole // self.group if self.by == "channel" else whole
        low, step = (x[:, :, :scales].clone() for x in (held.low, held.step))
        self._hold(held._replace(codes=held.codes[:, :, :whole].clone(), low=low, step=step))

    def reorder(self, rows: Tensor) -> None:
        """Select rows."""
        held = self._held
        if held is not None:
            codes, low, step = (take_batch(x, rows) for x in held[:3])
            self._hold(held._replace(codes=codes, low=low, step=step))
        self._tail = None if self._tail is None else take_batch(self._tail, rows)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and exact tokens."""
        held = (*(() if self._held is None else self._held[:3]), self._tail)
        return sum(x.untyped_storage().nbytes() for x in held if x is not None)

    def state(self) -> dict[str, Any]:
        """Return codes, scales and exact tokens."""
        codes, low, step = (None, None, None) if self._held is None else self._held[:3]
        return {"codes": codes, "low": low, "step": step, "tail": self._tail}

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        codes, low, step, self._tail = (state[x] for x in ("codes", "low", "step", "tail"))
        size = 0 if self._tail is None else self._tail.shape[3]
        self._hold(None if codes is None else Codes(codes, low, step, self.bits, size))
        self.loose = True
