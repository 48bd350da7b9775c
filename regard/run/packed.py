"""Decode over tokens packed in few bits, by a kernel that reads the codes."""

from __future__ import annotations

from typing import ClassVar

from regard.core.call import Call
from regard.core.codes import Codes
from regard.core.key_forms import Packed
from regard.core.partial import Partial
from regard.run.counting import count
from regard.run.executor import Answer, Cost, No, Yes
from regard.run.kernels import DecodeKernel, scale_of, why_no_kernel


class PackedDecode(DecodeKernel):
    """A Triton kernel for single queries over codes, keys by channel and values by token."""

    name = "packed"
    reads: ClassVar[frozenset[str]] = frozenset({"packed"})

    def can(self, call: Call) -> Answer:
        """Softmax of a scaled product over all keys."""
        keys = call.keys
        if not isinstance(keys, Packed):
            return No(f"reads packed keys, not {keys.form}")
        reason = why_no_kernel(call)
        if reason:
            return No(reason)
        if call.n != 1:
            return No(f"{call.n} queries: it takes one at a time")
        if not call.rule.position_free or call.placed:
            return No("positions matter, or some slots are empty")
        if _by_token(keys.k) or not _by_token(keys.v):
            return No("it reads keys packed by channel and values by token")
        group = keys.k.group
        if group & (group - 1):
            return No(f"groups of {group} tokens, which are no power of two")
        return Yes()

    def cost(self, call: Call) -> Cost:
        """Every code is read once."""
        pairs = float(call.b * call.h * call.n * call.m)
        return Cost(2.0 * pairs * (call.d + call.e), float(call.keys.nbytes), slowness=1.2)

    def run(self, call: Call) -> Partial:
        """Read the codes."""
        return self.split(call, None)

    def split(self, call: Call, splits: int | None) -> Partial:
        """Read the codes in so many pieces."""
        from regard.run.triton.packed import decode_packed  # imports triton

        keys = call.keys
        assert isinstance(keys, Packed)
        k, v = keys.k, keys.v
        tail = keys.tail if keys.tail[0].shape[2] else None
        count(call.b * call.h * keys.m, call.d + call.e, float(keys.nbytes))
        return decode_packed(
            call.q, k[:3], v[:3], (k.bits, v.bits), tail,
            size=v.size, scale=scale_of(call), splits=splits,
        )  # fmt: skip


def _by_token(codes: Codes) -> bool:
    """Whether low and step are those of tokens, and not of channels."""
    return codes.low.shape[3] == 1 and codes.low.shape[2] == codes.codes.shape[2]


__all__ = ["PackedDecode"]
