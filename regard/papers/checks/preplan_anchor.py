"""Signals of known maps have their closed forms, and gamma = 1 changes no advantage."""

from __future__ import annotations

import torch

from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.copier_models import looked, pointing
from regard.papers.shared.measure import gap
from regard.papers.shared.random_calls import PLACE, even, random
from regard.probes.rhythm import Rhythm, amplified


@check(
    "preplan_anchor",
    beyond="reinforcement learning with these advantages",
    same="uniform, identity and anchor maps are given",
)
def rhythm() -> Claims:
    """Signals of known maps have their closed forms, and gamma = 1 changes no advantage."""
    n, width = 40, 10
    uniform = Rhythm(width=width)
    looked(uniform, even(random(n)))
    capped = [sum(min(back, width) for back in range(t + 1)) / (t + 1) for t in range(n)]
    wanted = torch.tensor(capped)
    closed = gap(uniform.lookback().float(), wanted)
    own = Rhythm()
    looked(own, pointing(torch.arange(n).repeat(4, 1)).replace(site=PLACE))
    anchor = Rhythm(near=4, far=50)
    keys = torch.arange(n).clamp(max=5).repeat(4, 1)
    looked(anchor, pointing(keys).replace(site=PLACE))
    influence = float(anchor.influence()[5])
    logits = torch.randn(n, 7, requires_grad=True)
    said, advantage = torch.randint(7, (n,)), torch.randn(n)
    tokens = torch.rand(n) > 0.6
    grads = []
    for weights in (advantage, amplified(advantage, tokens, gamma=1.0)):
        logp = logits.log_softmax(-1)[torch.arange(n), said]
        grads.append(torch.autograd.grad(-(weights * logp).sum(), logits)[0])
    unchanged = gap(grads[0], grads[1])
    yield claim("Uniform causal attention", "difference", closed).within(
        1e-5, "mean of min(t - s, W)", because=FLOAT32
    )
    yield claim("an identity map", "WAAD", float(own.lookback().abs().max())).equals(0.0, "0")
    yield claim("FAI of a token", "FAI", influence).within(1e-6, "1", value=1, because=FLOAT32)
    yield claim("FAI of a token", "change of the RL gradient, gamma = 1", unchanged).equals(
        0.0, "none"
    )
