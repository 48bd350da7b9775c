"""Q-Filters: evict by the direction that the queries of a head share, calibrated once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.result import Result
from regard.models.attach import hook_of
from regard.models.site import Sites
from regard.models.stage import Stage
from regard.policies.base import Step
from regard.policies.calibration import need_calibration, run_texts
from regard.policies.kinds import Calibrated, Evict
from regard.policies.registry import register
from regard.policies.scoring import by_key_head


@register("q_filters", "q_filter", "qfilter")
@dataclass
class QFilters(Evict, Calibrated):
    """Keep the keys that point along the direction that the queries of their head share.

    score(j) = k_j . u, where u is the first right singular vector of the queries of a head over
    some texts, with the sign that makes the mean query positive, averaged over the query heads of a
    key head: `regard.policies.calibrate(model, "q_filters", texts, to=...)` with texts as ids
    [1, n]. The score of a key depends on the key alone. (Q-Filters, Godey et al. 2025)
    """

    filters: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Check that there are filters."""
        super().begin(model, sites, budget)
        if not self.filters and not self.budget.whole:
            need_calibration(self, "the directions that queries share")

    def score(self, step: Step) -> Tensor:
        """Project every key on its filter."""
        own = self.filters[step.site.layer or 0].to(step.call.k.device)
        return torch.einsum("bgmd,gd->bgm", step.call.k.float(), own)

    # Calibration

    def found(self) -> dict[str, Any]:
        """Return the filters, [g, d] of each layer."""
        return {"filters": dict(self.filters)}

    def take(self, found: dict[str, Any]) -> None:
        """Load the filters."""
        self.filters = {int(layer): x.float() for layer, x in found["filters"].items()}

    def guess(self, model: Any) -> dict[str, Any]:
        """Return uninformed filters: the first channel of every head."""
        sites = hook_of(model)[1]
        first = {s.layer or 0: torch.eye(s.head_size or 64)[:1] for s in sites}
        return {"filters": {s.layer or 0: first[s.layer or 0].repeat(s.kv_heads or 1, 1)
                            for s in sites}}  # fmt: skip

    def learn(
        self, model: Any, inputs: Sequence[Tensor], state: dict[str, Any],
        keep: Callable[[dict[str, Any]], Any],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Sum the moments of queries over the texts, and yield after each text."""
        moments = QueryMoments()
        if state:
            moments.sums, moments.squares = dict(state["sums"]), dict(state["squares"])
        yield from run_texts(
            model, inputs, state, moments, keep,
            lambda: {"sums": moments.sums, "squares": moments.squares},
        )  # fmt: skip
        groups = {s.layer or 0: s.kv_heads or s.heads or 1 for s in hook_of(model)[1]}
        self.filters = moments.filters(groups)


class QueryMoments(Stage):
    """Sum the queries of each head and their outer products, for the first singular vector."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[int, Tensor] = {}
        self.squares: dict[int, Tensor] = {}

    def see(self, call: Call, result: Result) -> None:
        """Add the queries of one call."""
        q, layer = call.q.detach().double(), call.site.layer or 0
        total, square = q.sum((0, 2)), torch.einsum("bhnd,bhne->hde", q, q)
        self.sums[layer] = self.sums.get(layer, 0) + total
        self.squares[layer] = self.squares.get(layer, 0) + square

    def filters(self, groups: dict[int, int]) -> dict[int, Tensor]:
        """Return the direction of each key head, [g, d] of each layer.

        The last eigenvector of Q^T Q is the first right singular vector of Q, up to its sign.
        """
        made = {}
        for layer, square in self.squares.items():
            first = torch.linalg.eigh(square.cpu()).eigenvectors[..., -1]
            along = (first * self.sums[layer].cpu()).sum(-1, keepdim=True)
            first = torch.where(along < 0, -first, first)
            made[layer] = by_key_head(first[None], groups[layer])[0].float()
        return made
