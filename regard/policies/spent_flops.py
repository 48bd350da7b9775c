"""The FLOPs of attention in a shrunk model, and those that the full model would take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regard.core.call import Call
from regard.core.support import Both, Causal
from regard.models.site import Site


@dataclass
class Spent:
    """FLOPs of attention at one site so far, and those that dense attention would have taken.

    `last` are the FLOPs that its last call would have taken densely.
    """

    flops: float = 0.0
    dense: float = 0.0
    last: float = 0.0


class SpentFlops(dict[Site, Spent]):
    """FLOPs of each site; with `causal`, every site counts as causal, whatever its rules are."""

    def __init__(self, sites: Iterable[Site], causal: bool) -> None:
        super().__init__({site: Spent() for site in sites})
        self.causal = causal
        # Number of calls counted.
        self.calls = 0

    def add(self, call: Call, e: int, seen: int, flops: float, dense: float | None = None) -> None:
        """Add the cost of a call with values of size `e`, and its dense cost over all `seen` keys.

        `dense` is the number of pairs in the full model, where that differs.
        """
        self.calls += 1
        b, h, n, d = call.q.shape
        each = 2.0 * b * h * (d + e)
        whole = float(seen) if n == 1 else self.pairs(call, seen)
        spent = self.get(call.site)
        if spent is None:
            spent = self[call.site] = Spent()
        spent.flops += flops
        spent.dense += each * (whole if dense is None else dense)
        spent.last = each * whole

    def pairs(self, call: Call, m: int) -> float:
        """Count the pairs per head and row, of the newest queries with m keys: causal, or all."""
        n, support = call.n, call.rule.support
        if n == 1:
            return float(m)
        parts = support.parts if isinstance(support, Both) else (support,)
        causal = self.causal or any(isinstance(p, Causal) for p in parts)
        return n * (m - n) + n * (n + 1) / 2 if causal and m >= n else float(n * m)

    def skip(self, module: str) -> None:
        """Count sites that were skipped: those of a module, or all of them where it is ""."""
        for site, spent in self.items():
            if site.module == module or not module:
                spent.dense += spent.last
