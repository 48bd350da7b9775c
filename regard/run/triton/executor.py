"""Triton as an executor: decode-like calls, few queries over many keys."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.band import Band
from regard.core.call import Call
from regard.core.partial import Partial
from regard.core.score.matches import DotMatch
from regard.core.support.base import Support
from regard.core.weigh import Softmax
from regard.run.bands import FAR, bands_of_heads
from regard.run.counting import count
from regard.run.executor import Answer, Cost, Executor, No, Yes
from regard.run.isolation import contained
from regard.run.transforms import Transforms
from regard.run.triton.availability import interpreting, why_not_here

# Queries that one program takes at most.
QUERIES = 16


class TritonExecutor(Executor):
    """Decode by split-K: causal bands with sinks, each head with its own where they differ."""

    name = "triton"
    transforms = Transforms.NONE

    def can(self, call: Call) -> Answer:
        """Few queries, softmax of a scaled product, a causal band, no gradient."""
        reason = why_not_here(call.q.device)
        if reason:
            return No(reason)
        if call.n > QUERIES or call.n * (call.h // call.g) > 128:
            return No(f"{call.n} queries: it decodes at most {QUERIES} at a time")
        if call.needs_grad:
            return No("a gradient is wanted, and decoding has none")
        if call.placed or call.dropout:
            return No("tokens stand at positions of their own, or weights are dropped")
        if type(call.rule.weigh) is not Softmax or not isinstance(call.rule.score.match, DotMatch):
            return No(f"{call.rule.score} weighed by {call.rule.weigh} is no softmax of a product")
        if call.rule.score.steps:
            return No(f"{call.rule.score.steps[0]} is not in the kernel")
        if call.q.dtype == torch.float64:
            return No("it sums in float32")
        bands = bands_of_heads(call.rule.support)
        if bands is None or any(b.high != 0 for b in bands):
            return No(f"{call.rule.support} is no causal band with sinks")
        return Yes("interpreted: right, and slow" if interpreting() else "")

    def avoid_reason(self, call: Call) -> str:
        """Never choose the interpreter."""
        return "interpreted" if call.q.device.type != "cuda" else ""

    def cost(self, call: Call) -> Cost:
        """Every key and value that some head can meet is read once."""
        bands = bands_of_heads(call.rule.support) or [Band()]
        spans = [min(call.m, 1 - max(b.low, -FAR) + b.sinks + call.n) for b in bands]
        share = sum(spans) / (len(spans) * max(call.m, 1))
        pairs = call.b * call.h * call.n * call.m * share
        kept = (call.k.numel() + call.v.numel()) * share + call.q.numel() * (1 + call.e / call.d)
        # Nobody has timed it yet: where a fused kernel reads the same keys, that goes first.
        return Cost(2.0 * pairs * (call.d + call.e), call.q.element_size() * kept, slowness=1.1)

    def run(self, call: Call) -> Partial:
        """Decode over the contiguous keys."""
        return contained(call, self._run)

    def _run(self, call: Call) -> Partial:
        from regard.run.triton.decode import decode  # imports triton

        window, sinks = band_numbers(call.rule.support, call.h, call.q.device)
        made = call.rule.score.match.prepare(call.q, call.k)
        assert made is not None
        bands = bands_of_heads(call.rule.support) or [Band()]
        spans = [min(call.m, 1 - max(b.low, -FAR) + b.sinks + call.n) for b in bands]
        kept = sum(spans) / len(spans)
        count(
            call.b * call.h * call.n * kept, call.d + call.e,
            call.q.element_size() * call.b * call.g * kept * (call.d + call.e),
        )  # fmt: skip
        return decode(
            call.q, call.k, call.v,
            scale=made[2],
            first=call.rule.offset,
            lengths=call.m,
            window=window,
            sinks=sinks,
        )  # fmt: skip


def band_numbers(support: Support, h: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Write the window and the sinks of each head, int32 [h] each.

    Kept with the support: numbers sent to a GPU at each call would hold the call up.
    """

    def written() -> Tensor:
        bands = bands_of_heads(support)
        assert bands is not None
        both = [[1 - b.low if b.low > -FAR else FAR for b in bands], [b.sinks for b in bands]]
        made = torch.tensor(both, dtype=torch.int32, device=device)
        return made.expand(2, h).contiguous()

    window, sinks = support.memo(("decode", h, str(device)), written)
    return window, sinks
