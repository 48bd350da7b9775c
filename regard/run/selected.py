"""Decode over slots of other keys, by a kernel that reads them where they are."""

from __future__ import annotations

from typing import ClassVar

from regard.core.call import Call
from regard.core.keys import Dense, Slots
from regard.core.partial import Partial
from regard.core.support.bands import Causal
from regard.run.counting import count
from regard.run.executor import Answer, No, Yes
from regard.run.kernels import DecodeKernel, scale_of, too_many, why_no_kernel


class Selected(DecodeKernel):
    """A Triton kernel for few queries over chosen keys; a slot of -1 is no key."""

    name = "selected"
    reads: ClassVar[frozenset[str]] = frozenset({"slots"})

    def can(self, call: Call) -> Answer:
        """Softmax of a scaled product over slots of tensors, all of them or the past."""
        keys = call.keys
        if not isinstance(keys, Slots):
            return No(f"reads slots keys, not {keys.form}")
        reason = why_no_kernel(call)
        if reason:
            return No(reason)
        if not isinstance(keys.keys, Dense):
            return No(f"slots of {keys.keys.form} keys")
        if reason := too_many(call):
            return No(reason)
        if call.rule.position_free:
            return Yes() if keys.keys.full else No("some slots of the other keys are empty")
        if keys.keys.placed or call.q_positions is not None:
            return No("positions matter, and are not those of the slots")
        return Yes() if call.rule.support == Causal() else No(f"{call.rule.support} is not causal")

    def run(self, call: Call) -> Partial:
        """Read the slots."""
        from regard.run.triton.decode import decode  # imports triton

        keys = call.keys
        assert isinstance(keys, Slots)
        whole = keys.keys.dense()
        m = whole.k.shape[2]
        first = m if call.rule.position_free else call.rule.offset
        index = keys.slots.expand(*whole.k.shape[:2], -1)
        size = call.q.element_size()
        count(
            call.b * call.h * call.n * index.shape[2], call.d + call.e,
            size * index.numel() * (call.d + call.e),
        )  # fmt: skip
        return decode(
            call.q, whole.k, whole.v, scale=scale_of(call), first=first, lengths=m, index=index
        )


__all__ = ["Selected"]
