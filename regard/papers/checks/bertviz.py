"""A query laid open gives its row again, and views of sentence pairs share out the weight."""

from __future__ import annotations

from regard.analysis.similarity import neuron_view
from regard.core.rule import Rule
from regard.models.weights import closed_weights
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.copier_models import CAUSAL
from regard.papers.shared.measure import gap
from regard.papers.shared.random_calls import random
from regard.probes.prompt_parts import spans_mass


@check("bertviz", beyond="views of line bundles: the page draws maps")
def views() -> Claims:
    """A query laid open gives its row again, and views of sentence pairs share out the weight."""
    worst, parts = 0.0, 0.0
    for rule in (CAUSAL, Rule()):
        call = random(16, rule)
        whole = closed_weights(call, "check")[0]
        for head in range(4):
            for row in range(16):
                view = neuron_view(call, head, row)
                worst = max(worst, gap(view.weights, whole[head, row]))
        found = spans_mass(call, {"a": slice(0, 7), "b": slice(7, 16)})
        parts = max(parts, float((found["a"] + found["b"] - 1).abs().max()))
    yield claim("From the exported neuron", "largest difference of a row", worst).within(
        1e-5, "the attention row", because=CATALOGUE
    )
    yield claim("filtered views partition", "distance of sums from 1", parts).within(
        1e-6, "1", because=FLOAT64
    )
