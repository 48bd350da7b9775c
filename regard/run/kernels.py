"""Whether a kernel of decoding can serve a call: over pages, slots or codes."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.score.matches import DotMatch
from regard.core.weigh import Softmax
from regard.run.triton.availability import why_not_here


def why_no_kernel(call: Call) -> str:
    """Say why no kernel of decoding can run a call, or nothing if one can."""
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


def avoid_interpreter(call: Call) -> str:
    """Say that kernels are interpreted where there is no GPU: right, and slow."""
    return "" if call.q.device.type == "cuda" else "interpreted"


__all__ = ["avoid_interpreter", "scale_of", "why_no_kernel"]
