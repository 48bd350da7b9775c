"""What attention costs on a shrunk model: the FLOPs that were computed, and those of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regard.core.call import Call
from regard.core.support import Both, Causal
from regard.models.site import Site


@dataclass
class Spent:
    """What one site has cost so far: FLOPs of attention, and what dense ones would have been.

    `last` are the FLOPs that its last call would have taken densely.
    """

    flops: float = 0.0
    dense: float = 0.0
    last: float = 0.0


class SpentFlops(dict[Site, Spent]):
    """What each site has cost; `causal` says that every site is, whatever its rules say."""

    def __init__(self, sites: Iterable[Site], causal: bool) -> None:
        super().__init__({site: Spent() for site in sites})
        self.causal = causal
        # Calls that were counted.
        self.calls = 0

    def add(self, call: Call, e: int, seen: int, flops: float, dense: float | None = None) -> None:
        """Add what a call with values of size `e` cost, against all of `seen` keys.

        `dense` counts the pairs of the whole model, where it would have had others.
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
        """Pairs of one head and row among the newest queries and m keys: causal, or all."""
        n, support = call.n, call.rule.support
        if n == 1:
            return float(m)
        parts = support.parts if isinstance(support, Both) else (support,)
        causal = self.causal or any(isinstance(p, Causal) for p in parts)
        return n * (m - n) + n * (n + 1) / 2 if causal and m >= n else float(n * m)

    def skip(self, module: str) -> None:
        """Count what was not run: the sites of a module, or of the whole model where it is ""."""
        for site, spent in self.items():
            if site.module == module or not module:
                spent.dense += spent.last
