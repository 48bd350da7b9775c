"""The shape of attention: how spread, how far, how concentrated."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail
from regard.core.method import method
from regard.models.site import Site
from regard.probes.base import Probe, RowMean
from regard.probes.reading import counted_rows
from regard.probes.registry import register
from regard.probes.scores import Scores
from regard.run.reducers import Reducer
from regard.run.row_blocks import RowBlock
from regard.run.survey import survey_call


@register("entropy", groups=("shape",))
class Entropy(RowMean):
    """How spread the weight of a query is, in nats, or as a share of the most it could be."""

    key, title, high = "entropy", "entropy", None
    kinds = ("self", "cross", "joint")
    want = ("entropy",)
    definitions: ClassVar = {
        "nats": "mean over queries of -sum A log A",
        "relative": "the same over the log of how many keys the query may attend to; 1 is uniform",
    }
    collapsed: ClassVar[float] = 0.05

    def rows(self, call: Call, survey: Any) -> Tensor:
        """Return the entropy of each query [b, h, n]."""
        if self.definition == "nats":
            return survey.entropy
        return survey.entropy / visible_keys(call).log().clamp(min=1e-9)

    def eligible(self, call: Call) -> Tensor:
        """A query with one key has nothing to spread over."""
        return visible_keys(call) > 1 if self.definition == "relative" else super().eligible(call)

    def result(self) -> Scores:
        """Entropy by head; `details["collapsed"]` names heads whose entropy is all but nothing."""
        scores = super().result()
        scores.details["collapsed"] = [h.name for h in scores.heads() if h.value < self.collapsed]
        return scores


@register("concentration", groups=("shape",))
class Concentration(RowMean):
    """The largest weight of a query, on average."""

    key, title = "concentration", "largest weight"
    kinds = ("self", "cross", "joint")
    want = ("max",)
    definitions: ClassVar = {"max": "mean over queries of max_j A[i, j]"}

    def rows(self, call: Call, survey: Any) -> Tensor:
        """Largest weight of each query."""
        return survey.row_max


@register("distance", groups=("shape",))
class Distance(Probe):
    """How far away the weight lies: in tokens, or in patches of an image."""

    key, title, high = "distance", "mean distance", None
    definitions: ClassVar = {
        "tokens": "mean over queries of sum_j A[i, j] |i - j|",
        "euclidean": "patches of an image: sum_j A[i, j] |xy_i - xy_j| (Raghu 2021)",
        "hops": "patches of an image: sum_j A[i, j] max(|x_i - x_j|, |y_i - y_j|)",
    }

    def __init__(self, where: Any = None, *, definition: str | None = None) -> None:
        super().__init__(where, definition=definition)
        self.want = ("apart",) if self.definition == "tokens" else ()

    def look(self, site: Site, call: Call, report: Any) -> None:
        """Read it off the survey; for patches, sweep with what knows where they stand."""
        counted = counted_rows(self.reading, call)
        if self.definition == "tokens":
            self.tally.add(site, report.apart, counted)
            return
        places, special = _patches(self, site, call)
        reducer = Expected(call, places, special, hops=self.definition == "hops")
        survey_call(call, reducers=[reducer])
        patches = torch.arange(call.n, device=call.q.device) >= special
        self.tally.add(site, reducer.found, counted & patches)


def _patches(probe: Probe, site: Site, call: Call) -> tuple[Tensor, int]:
    """Return the row and column of each patch [patches, 2], and how many tokens come before."""
    grid = site.grid or probe.reading.grid
    if grid is None or call.n < math.prod(grid):
        fail(
            CapabilityError, f"probes: {probe.name}",
            f"{site!r} without a grid" if grid is None else f"{call.n} tokens for {grid}",
            "patches on a grid", "ask for definition='tokens', or pass grid=(rows, columns)",
        )  # fmt: skip
    rows, columns = grid[-2:]
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    return places, call.n - len(places)


class _OnGrid(Reducer):
    """A reducer that knows the position [tokens, axes] of each token; `special` ones come first."""

    def __init__(self, call: Call, places: Tensor, special: int) -> None:
        self.places, self.special = places.to(call.q.device), special

    def ends(self, block: RowBlock) -> tuple[Tensor, Tensor, Tensor]:
        """Return the positions of a block's queries and keys, and which keys are on the grid."""
        keys = torch.arange(block.cols.start, block.cols.stop, device=self.places.device)
        rows = torch.arange(block.rows.start, block.rows.stop, device=self.places.device)
        # A block may reach past the last key, with weights of zero.
        last = len(self.places) - 1
        origin, to = (self.places[(x - self.special).clamp(0, last)] for x in (rows, keys))
        return origin, to, keys >= self.special


class Expected(_OnGrid):
    """Mean distance of what each query looks at [b, h, n]; tokens before the grid are left out.

    `places` [tokens, axes] are the positions of tokens. Weight on special tokens is left out, and
    the rest is normalized.
    """

    def __init__(self, call: Call, places: Tensor, special: int = 0, hops: bool = False) -> None:
        super().__init__(call, places, special)
        self.hops = hops
        self.found = torch.zeros(call.b, call.h, call.n, dtype=torch.float64, device=call.q.device)

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        origin, to, real = self.ends(block)
        p = torch.inf if self.hops else 2
        apart = torch.cdist(origin[None], to[None], p=p)[0]
        size = block.size.double() * real
        total = size.sum(-1) if self.special else block.total.double()
        mean = (size * apart).sum(-1) / total.clamp(min=1e-30)
        self.found[block.b, block.h, block.rows] = mean


@register("rings")
@method(
    "vit_head_profile",
    call="from regard.probes.shape import Rings\n"
    "probe = Rings()  # regard.see(model, pixels, [probe]).scores['rings'].details",
)
class Rings(Probe):
    """Weight by hops on the grid of an image: `details["rings"][site]` is [heads, hops].

    The score of a head is the mean number of hops. Hop k is the ring at Chebyshev distance k;
    tokens that are no patches (CLS) make a last bin.
    """

    key, title, high = "rings", "hops on the grid", None
    definitions: ClassVar = {"hops": "mean over patches of sum_k k * weight on ring k"}

    def __init__(self, where: Any = None) -> None:
        super().__init__(where)
        self.rings: dict[Site, Tensor] = {}

    def look(self, site: Site, call: Call, _: Any) -> None:
        """Share out the weight among rings."""
        places, special = _patches(self, site, call)
        reducer = RingShares(call, places, special)
        survey_call(call, reducers=[reducer])
        self.rings[site] = reducer.found[:, :, special:].mean((0, 2)).cpu()

    def result(self) -> Scores:
        """Return the mean hops by head."""
        values = {}
        for site, rings in self.rings.items():
            hops = torch.arange(rings.shape[1] - 1, dtype=rings.dtype)
            values[site] = (rings[:, :-1] * hops).sum(1)
        return self.scores(values, rings=self.rings)


class RingShares(_OnGrid):
    """Weight of each query by hops, special tokens last [b, h, n, hops + 1]."""

    def __init__(self, call: Call, places: Tensor, special: int) -> None:
        super().__init__(call, places, special)
        self.hops = int(places.max()) + 1
        shape = (call.b, call.h, call.n, self.hops + 1)
        self.found = torch.zeros(shape, dtype=torch.float64, device=call.q.device)

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        origin, to, real = self.ends(block)
        hop = (origin[:, None] - to[None]).abs().amax(-1).long()
        hop[:, ~real] = self.hops
        weights = block.size.double() * block.share.double()[:, None]
        into = weights.new_zeros(len(origin), self.hops + 1)
        self.found[block.b, block.h, block.rows] = into.scatter_add(1, hop, weights)


def visible_keys(call: Call) -> Tensor:
    """Return how many keys each query may attend to [b or 1, h or 1, n]."""
    found = []
    step = max(1, (1 << 22) // max(call.m, 1))
    for start in range(0, call.n, step):
        at = call.at(torch.arange(start, min(start + step, call.n), device=call.q.device))
        allowed = call.rule.support.allows(at.b, at.h, at.i, at.j)
        found.append(allowed.expand(*allowed.shape[:-1], call.m).sum(-1).double())
    return torch.cat([x if x.dim() == 3 else x.view(1, 1, -1) for x in found], -1)
