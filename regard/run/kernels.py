"""Whether a kernel of decoding can serve a call: over pages, slots or codes."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.score.matches import DotMatch
from regard.core.weigh import Softmax
from regard.run.executor import Cost, Executor
from regard.run.triton.availability import why_not_here
from regard.run.triton.executor import QUERIES


def why_no_kernel(call: Call) -> str:
    """Return why no kernel of decoding can run a call, or nothing if one can."""
    reason = why_not_here(call.q.device)
    if reason:
        return reason
    if call.q.dtype == torch.float64:
        return "it sums in float32"
    if call.needs_grad:
        return "a gradient is wanted, and decoding has none"
    if call.dropout:
        return "drops no weights"
    if type(call.rule.weigh) is not Softmax or not isinstance(call.rule.score.match, DotMatch):
        return f"{call.rule.score} weighed by {call.rule.weigh} is no softmax of a product"
    if call.rule.score.steps:
        return f"{call.rule.score.steps[0]} is not in the kernel"
    return ""


def scale_of(call: Call) -> float:
    """Return the scale of a call that multiplies q . k, and nothing else."""
    match = call.rule.score.match
    assert isinstance(match, DotMatch)
    return call.d**-0.5 if match.scale is None else float(match.scale)


def too_many(call: Call) -> str:
    """Return that a call has more queries than a kernel takes at a time, or nothing."""
    if call.n > QUERIES or call.n * (call.h // call.g) > 128:
        return f"{call.n} queries: it decodes at most {QUERIES} at a time"
    return ""


class DecodeKernel(Executor):
    """Base of the kernels of decoding: every key is read once, where it is."""

    def avoid_reason(self, call: Call) -> str:
        """Never choose the interpreter: it is right, and slow."""
        return "" if call.q.device.type == "cuda" else "interpreted"

    def cost(self, call: Call) -> Cost:
        """All queries of a key head read its keys together."""
        pairs = float(call.b * call.h * call.n * call.m)
        moved = call.q.element_size() * call.b * call.g * call.m * (call.d + call.e)
        return Cost(2.0 * pairs * (call.d + call.e), moved, slowness=1.2)


__all__ = ["DecodeKernel", "scale_of", "too_many", "why_no_kernel"]
