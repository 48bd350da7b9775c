"""The rhythm of a text: where local heads look far back, and what later tokens come back to."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, ValueRangeError, fail
from regard.core.method import method
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.reading import counted_rows
from regard.probes.registry import register
from regard.run.reducers import Reducer
from regard.run.row_blocks import RowBlock
from regard.run.survey import survey


@register("rhythm")
@method(
    "preplan_anchor",
    call="from regard.probes.rhythm import Rhythm\n"
    "probe = Rhythm()  # regard.see(model, text, [probe]); probe.lookback(), probe.influence()",
)
class Rhythm(Probe):
    """How far back heads look, and two signals of each token made from it.

    `lookback()` is WAAD_t = sum_s A_loc[t, s] min(t - s, width), A_loc the mean of the most local
    heads: its peaks open a phrase. `influence()` is FAI_s = mean of A_wide[t, s] over the queries
    t in [s + near, s + far]: large at a token that later ones come back to. The score of a head is
    its mean distance; the lowest `share` of heads are local, the highest are wide.
    """

    key, title, high = "rhythm", "look back, in tokens", None
    causal_only = True
    definitions: ClassVar = {"span": "mean over queries of sum_j A[i, j] (i - j)"}

    def __init__(
        self, width: int = 10, near: int = 4, far: int = 50, share: float = 0.3, where: Any = None
    ) -> None:
        super().__init__(where)
        if not 0 < share <= 0.5 or width < 1 or not 0 <= near <= far:
            fail(
                ValueRangeError, "width, near, far, share", (width, near, far, share),
                "width >= 1, 0 <= near <= far and 0 < share <= 0.5", "take Rhythm()",
            )  # fmt: skip
        self.width, self.near, self.far, self.share = width, near, far, share
        self.back: dict[Site, Tensor] = {}
        self.later: dict[Site, Tensor] = {}

    def look(self, site: Site, call: Call, _: Any) -> None:
        """Sweep once: distances, capped distances, and what later queries give each key."""
        sweep = _Sweep(call, self.width, self.near, self.far)
        report = survey(call.q, call.k, call.v, call.rule, want=("apart",), reducers=[sweep])
        self.tally.add(site, report.apart, counted_rows(self.reading, call))
        self.back[site] = sweep.back.mean(0).cpu()
        self.later[site] = (sweep.given / sweep.queries.clamp(min=1)).mean(0).cpu()

    def groups(self) -> tuple[list[tuple[Site, int]], list[tuple[Site, int]]]:
        """Return the heads that look near, and those that look far."""
        if not self.tally.sums:
            fail(RuleError, "rhythm", "nothing seen yet", "a look", "pass it to regard.see first")
        ranked = sorted(self.result().heads(), key=lambda head: head.value)
        count = max(1, round(self.share * len(ranked)))
        pairs = [(head.site, head.head) for head in ranked]
        return pairs[:count], pairs[-count:]

    def lookback(self) -> Tensor:
        """WAAD of each token [n], of the local heads."""
        return torch.stack([self.back[site][head] for site, head in self.groups()[0]]).mean(0)

    def influence(self) -> Tensor:
        """FAI of each token [n], of the wide heads; 0 without queries far enough after it."""
        return torch.stack([self.later[site][head] for site, head in self.groups()[1]]).mean(0)


class _Sweep(Reducer):
    """Capped distance of each query, and weight each key gets of the queries in a band behind."""

    def __init__(self, call: Call, width: int, near: int, far: int) -> None:
        self.width, self.near, self.far = width, near, far
        zeros = torch.zeros(call.b, call.h, call.n, dtype=torch.float64, device=call.q.device)
        self.back, self.given = zeros, torch.zeros_like(zeros)
        keys = torch.arange(call.m, device=call.q.device)
        self.queries = (call.n - keys - near).clamp(0, far - near + 1)

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        apart = block.i[:, None] - block.j
        weights = block.weights.double()
        self.back[block.b, block.h, block.rows] = (weights * apart.clamp(0, self.width)).sum(1)
        inside = (apart >= self.near) & (apart <= self.far)
        got = (weights * inside).sum(0)
        keys = slice(block.cols.start, min(block.cols.stop, self.given.shape[2]))
        self.given[block.b, block.h, keys] += got[: keys.stop - keys.start]


def marked(signal: Tensor, share: float = 0.4) -> Tensor:
    """Return the tokens with the largest signal, bool [n].

    >>> marked(torch.tensor([0.0, 3.0, 1.0, 2.0, 0.0]), 0.4).tolist()
    [False, True, False, True, False]
    """
    chosen = torch.zeros_like(signal, dtype=torch.bool)
    chosen[signal.topk(max(1, round(share * len(signal)))).indices] = True
    return chosen


def amplified(
    advantage: Tensor, tokens: Tensor, gamma: float = 1.5, back_to: Tensor | None = None
) -> Tensor:
    """Advantages [n] for reinforcement learning, those of marked tokens times gamma if positive.

    `back_to` [n] names for each token the one that half of its bonus goes to (itself, or the peak
    of lookback that introduced it). gamma = 1 changes nothing.

    >>> amplified(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([True, True, False])).tolist()
    [1.5, -1.0, 2.0]
    """
    bonus = (gamma - 1) * torch.where(tokens, advantage.clamp(min=0), 0.0)
    if back_to is None:
        return advantage + bonus
    moved = torch.where(back_to == torch.arange(len(bonus)), 0.0, bonus / 2)
    return advantage + bonus - moved + torch.zeros_like(bonus).index_add(0, back_to, moved)
