"""AdaSpa: important blocks of a denoising model, searched at a few steps and used in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.core.support import Tiles
from regard.models.site import Site, Sites
from regard.policies.base import Step
from regard.policies.denoising import denoises
from regard.policies.kinds import SelectAndRun
from regard.policies.registry import register
from regard.run.executor import Answer
from regard.run.mass import tile_mass
from regard.run.runner import run


@dataclass
class FoundTiles:
    """What a search found at one site: the tiles that matter, and the log-sum-exp of each row.

    `due` is set while the current call is one that searches.
    """

    chosen: Tensor | None = None
    lse: Tensor | None = None
    due: bool = False


@method("adaspa", call='from regard.policies import policy; policy("adaspa")')
@register("adaspa")
@dataclass
class AdaSpa(SelectAndRun):
    """Compute the tiles with most weight, searched at the steps in `searches` and used in between.

    Before the first search attention is dense. The first one runs densely, keeps the log-sum-exp of
    each row, and sums the weights of each tile, M_IJ = sum exp(q_i k_j - lse_i); later ones reuse
    that log-sum-exp, and compute only the tiles they find. Each row of tiles computes its best
    `keep`; heads whose best tiles hold more weight than those of others give tiles to them, up to
    `spread` of all, where that raises the total; the mean stays. Tiles that contain text are always
    computed. Each guidance branch has its own tiles, where the branches are known. (AdaSpa, Xia et
    al. 2025)
    """

    what: ClassVar[str] = "images"
    needs_cache: ClassVar[bool] = False
    block: int = 64
    searches: tuple[int, ...] = (10, 30)
    spread: float = 0.1
    # Calls with fewer tiles than this are dense.
    least: int = 4

    def can(self, model: Any, sites: Sites) -> Answer:
        """Accept denoising models with self-attention."""
        return denoises(model, sites, "self", "joint")

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Drop what was found in another model."""
        super().begin(model, sites, budget)
        steps = self.searches
        good = isinstance(steps, tuple | list) and all(isinstance(s, int) for s in steps)
        if not good or not steps or min(steps) < 0 or list(steps) != sorted(set(steps)):
            fail(
                ValueRangeError, "searches", repr(steps), "rising steps from 0",
                "pass searches=(10, 30)",
            )  # fmt: skip
        self.budget.need_share("the pairs")
        self._found: dict[Any, FoundTiles] = {}

    def end(self) -> None:
        """Release what was found."""
        super().end()
        self._found = {}

    def select(self, step: Step) -> Call:
        """Use the tiles that were found, and search at the steps of `searches`."""
        call, site = step.call, step.site
        served = site.kind != "cross" and call.n == call.m and call.n >= self.least * self.block
        now = call.forward
        if self.budget.whole or not served or now is None:
            return call
        found = self._found.setdefault((site, now.branches), FoundTiles())
        if now.step < self.searches[0]:
            return call
        fits = found.lse is not None and found.lse.shape == call.q.shape[:3]
        if found.chosen is None or not fits or now.step == self.searches[0]:
            found.due = True
            return call
        if now.step in self.searches:
            self.search(call, found)
        tiles = Tiles(found.chosen, (self.block, self.block))
        return call.replace(rule=call.rule.replace(support=call.rule.support & tiles))

    def run(self, call: Call) -> Tensor | None:
        """Run the first search: compute densely and keep the log-sum-exp."""
        now = call.forward
        found = self._found.get((call.site, now.branches)) if now is not None else None
        if found is None or not found.due:
            return None
        found.due = False
        partial = run(call, ("lse",))
        found.lse = partial.lse
        self.search(call, found)
        return partial.out

    def search(self, call: Call, found: FoundTiles) -> None:
        """Choose tiles by their weight, given the log-sum-exp."""
        mass = tile_mass(call, self.block, found.lse)
        share = self.budget.share or 1.0
        found.chosen = choose(mass, always(call, self.block), share, self.spread)


def always(call: Call, block: int) -> Tensor:
    """Return which tiles hold text, bool [t]."""
    site: Site = call.site
    held = torch.zeros(call.n + -call.n % block, dtype=torch.bool)
    span = site.span("image", call.n, call.forward)
    if site.kind == "joint" and span is not None:
        held[: call.n] = True
        held[span] = False
    return held.view(-1, block).any(1)


def choose(mass: Tensor, text: Tensor, keep: float, spread: float = 0.0) -> Tensor:
    """Choose the tiles of most weight in each row, [b, h, t, t], a share `keep` on average.

    Tiles in `text` [t] are always chosen, on top of the share. Heads are ranked by the weight that
    their best tiles hold: each of the upper half gives tiles to one of the lower, up to `spread` of
    all, as many as make the total largest.

    >>> mass = torch.tensor([[[[5.0, 1.0], [2.0, 9.0]]]])
    >>> choose(mass, torch.tensor([False, False]), 0.5).int().tolist()
    [[[[1, 0], [0, 1]]]]
    """
    text = text.to(mass.device)
    free = ~(text[:, None] | text)
    most = int((~text).sum())
    if not most:
        return torch.ones_like(mass, dtype=torch.bool)
    ranked, order = mass.masked_fill(~free, -torch.inf).sort(dim=-1, descending=True, stable=True)
    place = order.argsort(dim=-1)
    count = max(1, round(keep * most))
    counts = torch.full(mass.shape[:2], count, device=mass.device)
    by = min(round(spread * most), count - 1, most - count)
    if by > 0 and mass.shape[1] > 1:
        # Share of a head's weight in its best 1, 2, ... tiles of each row, [b, h, most].
        curve = ranked[:, :, ~text, :most].cumsum(-1).sum(2)
        curve = curve / curve[..., -1:].clamp(min=1e-30)
        rank, half = curve[..., count - 1].argsort(1).argsort(1), mass.shape[1] // 2
        change = (rank < half).int() - (rank >= mass.shape[1] - half).int()
        tried = [counts + move * change for move in range(by + 1)]
        held = torch.stack([curve.gather(2, x[..., None] - 1).sum((1, 2)) for x in tried])
        counts = torch.stack(tried)[held.argmax(0), torch.arange(len(mass), device=mass.device)]
    return (place < counts[..., None, None]) & free | ~free
