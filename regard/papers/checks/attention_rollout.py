"""Rollout sums to 1 and is the Jacobian of a linear model; flow lies within its bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.circuits.flow import maximal_flows, rollout
from regard.core.rule import Rule
from regard.models.weights import closed_weights
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, FLOAT64, claim
from regard.papers.shared.copier_models import pointing
from regard.papers.shared.measure import gap
from regard.papers.shared.random_calls import even, random


@check("attention_rollout")
def flows() -> Claims:
    """Rollout sums to 1 and is the Jacobian of a linear model; flow lies within its bounds."""
    n, layers = 10, 3
    calls = [random(n) for _ in range(layers)]
    rows = torch.cat([rollout(calls, p) for p in range(n)])  # [n, n]
    sums = float((rows.sum(1) - 1).abs().max())
    future = float(rows.triu(1).abs().max())
    own = [pointing(torch.arange(n).repeat(4, 1)) for _ in range(layers)]
    identity = gap(torch.cat([rollout(own, p) for p in range(n)]).float(), torch.eye(n))
    full = [even(random(n, Rule())) for _ in range(layers)]
    found = rollout(full, 2)[0]
    wanted = torch.full((n,), (1 - 0.5**layers) / n, dtype=torch.float64)
    wanted[2] += 0.5**layers
    closed = gap(found, wanted)
    maps = [closed_weights(c, "check").mean(1)[0] for c in calls]

    def linear(x: Tensor) -> Tensor:  # values are the states themselves
        for a in maps:
            x = 0.5 * x + 0.5 * a @ x
        return x

    jacobian = torch.autograd.functional.jacobian(linear, torch.randn(n, dtype=torch.float64))
    true = gap(rows, jacobian)
    two = calls[:2]
    flow = maximal_flows(two)[0]
    mixed = [(m + torch.eye(n)) / 2 for m in maps[:2]]
    bottleneck = torch.minimum(mixed[1][-1][:, None], mixed[0]).amax(0)
    lowest = float((flow - bottleneck).min())
    yield claim("Rollout rows sum", "distance of sums from 1", sums).within(
        1e-6, "1", because=FLOAT64
    )
    yield claim("with A_l=I", "difference", identity).within(1e-6, "I", because=FLOAT32)
    yield claim("uniform A gives", "difference", closed).within(
        1e-6, "(1 - 2^-L) / n, and 2^-L for itself", because=FLOAT64
    )
    yield claim("flow >= any", "least flow over the best single path", lowest).at_least(
        0, "none less", plus=-1e-9, because=FLOAT64
    )
    yield claim("flow >= any", "largest flow", float(flow.max())).at_most(
        1, "outgoing capacity", plus=1e-9, because=FLOAT64
    )
    yield claim("causal upper triangle", "largest entry", future).equals(0.0, "0")
    yield claim("for a linear model", "difference", true).within(
        1e-6, "the Jacobian by autograd", because=FLOAT64
    )
