"""Sharpness of heads: the inverse temperature of cosines of queries and keys."""

from __future__ import annotations

from typing import Any, ClassVar

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.layers.sparse_distributed import matched_radius
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.reading import counted_rows
from regard.probes.registry import register
from regard.probes.scores import Scores


@register("beta")
@method(
    "sdm_attention",
    call="from regard.probes.temperature import Beta\n"
    "probe = Beta()  # regard.see(model, text, [probe]).scores['beta'].details['radius']",
)
class Beta(Probe):
    """The effective inverse temperature of a head: scale |q| mean |k|, the factor of the cosine.

    `details["radius"]` gives for each site the radii of sparse distributed memories of 64 bits that
    are as sharp (Bricken 2021).
    """

    key, title, high = "beta", "inverse temperature", None
    definitions: ClassVar = {"norms": "mean over queries of scale |q_i| mean_j |k_j|"}

    def look(self, site: Site, call: Call, survey: Any) -> None:
        """Multiply the lengths."""
        made = call.rule.score.match.prepare(call.q.detach().float(), call.k.detach().float())
        if made is None:
            fail(
                CapabilityError, f"probes: {self.name}", f"scores by {call.rule.score.match}",
                "scores that are products", "leave this probe out for this model",
            )  # fmt: skip
        q, k, scale = made
        rows = (
            abs(scale) * q.norm(dim=-1) * expand_heads(k, call.h).norm(dim=-1).mean(-1)[..., None]
        )
        self.tally.add(site, rows, counted_rows(self.reading, call))

    def result(self) -> Scores:
        """Return the mean by head, and the memory that is as sharp."""
        scores = super().result()
        radius = {s: [matched_radius(x) for x in v.tolist()] for s, v in scores.values.items()}
        scores.details["radius"] = radius
        return scores
