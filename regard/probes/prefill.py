"""Which pattern a head's prompt attention has: a shape that a sparse prefill could keep."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.support import Sinks, Window
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.registry import register
from regard.probes.scores import Scores
from regard.run.mass import mass
from regard.run.survey import survey

SHAPES = ("a-shape", "vertical", "slash", "block")


@register("prefill", groups=("patterns",))
class PrefillPattern(Probe):
    """The share of all weight that the best of four sparse patterns keeps, at one budget.

    With a budget of B keys for each query: "a-shape" keeps the first B / 8 and the latest 7 B / 8
    keys; "vertical" the B keys that get most; "slash" the B distances that get most; "block" the
    B / 64 tiles of 64 keys with most weight in each 64 queries. What each keeps is measured, of the
    true weights, so this is the most a search could find (MInference's shapes, Jiang 2024).
    `details["kept"][site]` is [heads, shapes], `details["shape"]` names each head's best.
    """

    key, title = "prefill", "kept by the best sparse pattern"
    causal_only = True
    definitions: ClassVar = {"recall": "weight on the pattern's pairs over all weight"}

    def __init__(self, density: float = 0.1, tile: int = 64, where: Any = None) -> None:
        super().__init__(where)
        if not 0 < density <= 1:
            fail(ValueRangeError, "density", density, "a share in (0, 1]", "take 0.1")
        self.density, self.tile = density, tile
        self.kept: dict[Site, Tensor] = {}
        self.inputs = 0

    def look(self, site: Site, call: Call, _: Any) -> None:
        """Survey columns, distances and tiles in one pass; weigh the ends."""
        if call.n != call.m or call.placed:
            fail(
                CapabilityError, f"probes: {self.name}", f"{call.n} queries on {call.m} keys",
                "a whole prompt at once", "leave it out while decoding",
            )  # fmt: skip
        budget = max(8, round(self.density * call.m))
        report = survey(
            call.q, call.k, call.v, call.rule, want=("received", "distance", "tiles"),
            tile=self.tile, near=call.n,
        )  # fmt: skip
        first = max(1, budget // 8)
        ends = mass(call, Sinks(first) | Window(budget - first)).sum(-1)
        columns = _top(report.received, budget)
        slashes = _top(report.distance_near, budget)
        blocks = _top(report.tile_sum, max(1, round(budget / self.tile))).sum(-1)
        whole = report.received.sum(-1)
        kept = torch.stack([ends, columns, slashes, blocks], -1) / whole[..., None]
        self.kept[site] = self.kept.get(site, 0.0) + kept.double().sum(0).cpu()
        self.tally.add(site, kept.amax(-1)[..., None])

    def result(self) -> Scores:
        """Return what the best keeps; and which it is."""
        scores = super().result()
        shares = {s: x / self.tally.counts[s][:, None] for s, x in self.kept.items()}
        shape = {s: [SHAPES[i] for i in x.argmax(1).tolist()] for s, x in shares.items()}
        scores.details.update(kept=shares, shape=shape)
        return scores


def _top(x: Tensor, count: int) -> Tensor:
    """Return the sum of the largest entries of the last axis."""
    return x.topk(min(count, x.shape[-1]), dim=-1).values.sum(-1)
