"""Decode over slots of other keys, by a kernel that reads them where they are."""

from __future__ import annotations

from typing import ClassVar

from regard.core.call import Call
from regard.core.keys import Dense, Slots
from regard.core.partial import Partial
from regard.core.support.bands import Causal
from regard.run.counting import count
from regard.run.executor import Answer, Cost, Executor, No, Yes
from regard.run.kernels import avoid_interpreter, scale_of, why_no_kernel
from regard.run.triton.executor import QUERIES


class Selected(Executor):
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
        if call.n > QUERIES or call.n * (call.h // call.g) > 128:
            return No(f"{call.n} queries: it decodes at most {QUERIES} at a time")
        if call.rule.position_free:
            return Yes() if keys.keys.full else No("some slots of the other keys are empty")
        if keys.keys.placed or call.q_positions is not None:
            return No("positions matter, and are not those of the slots")
        return Yes() if call.rule.support == Causal() else No(f"{call.rule.support} is not causal")

    def avoid_reason(self, call: Call) -> str:
        """Never choose the interpreter."""
        return avoid_interpreter(call)

    def cost(self, call: Call) -> Cost:
        """Every slot is read once."""
        pairs = float(call.b * call.h * call.n * call.m)
        moved = call.q.element_size() * call.b * call.g * call.m * (call.d + call.e)
        return Cost(2.0 * pairs * (call.d + call.e), moved, slowness=1.2)

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
