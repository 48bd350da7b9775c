"""A query laid open gives its row again, and views of sentence pairs share out the weight."""

from __future__ import annotations

import torch

from regard.analysis.similarity import neuron_view
from regard.core.rule import Rule
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.copier_models import CAUSAL
from regard.papers.shared.measure import gap
from regard.papers.shared.random_calls import random
from regard.probes.prompt_parts import spans_mass
from regard.run.api import attend


@check("bertviz", beyond="views of line bundles: the page draws maps")
def views() -> Claims:
    """A query laid open gives its row again, and views of sentence pairs share out the weight."""
    worst, parts = 0.0, 0.0
    for rule in (CAUSAL, Rule()):
        call = random(16, rule)
        eye = torch.eye(16, dtype=torch.float64).expand(1, 4, -1, -1)
        whole = attend(call.q, call.k, eye, rule)[0]  # what is attended to one-hot is the weights
        allowed = whole.amax(0) > 0
        for head in range(4):
            for row in range(16):
                view = neuron_view(call, head, row)
                # As one who reads the view would: add up the products, scale, softmax what is seen.
                scores = view.products.sum(-1) / 8**0.5
                again = scores.masked_fill(~allowed[row], -torch.inf).softmax(-1)
                worst = max([worst, *(gap(x, whole[head, row]) for x in (again, view.weights))])
        found = spans_mass(call, {"a": slice(0, 7), "b": slice(7, 16)})
        parts = max(parts, float((found["a"] + found["b"] - 1).abs().max()))
    yield claim("From the exported neuron", "largest difference of a row", worst).within(
        1e-5, "the attention row", because=CATALOGUE
    )
    yield claim("filtered views partition", "distance of sums from 1", parts).within(
        1e-6, "1", because=FLOAT64
    )
