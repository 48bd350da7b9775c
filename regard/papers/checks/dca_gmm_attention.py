"""Means only grow, the prior moves one place forward on average, and nothing goes back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.alignment import GlobalAlignment, SourceAttention
from regard.layers.location import DynamicConvolutionAttention, GaussianMixture, beta_binomial
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.source_copier import Copier, copied
from regard.papers.shared.until_learned import fit_until


def _copier(attention: SourceAttention) -> Copier:
    """Train a copier on sources of 20 tokens, until it makes no mistakes or for 450 steps."""
    copier = Copier(attention)

    def loss() -> Tensor:
        source = torch.randint(0, 8, (32, 20))
        return F.cross_entropy(copier(source, source).flatten(0, 1), source.flatten())

    fit_until(copier.parameters(), loss, 0.002, 450, 1e-2, cool=100)
    return copier


@check(
    "dca_gmm_attention",
    narrowed={"GMM means never decrease": "the means; mixture weights of V1 and V2 are a softmax"},
)
def location_relative() -> Claims:
    """Means only grow, the prior moves one place forward on average, and nothing goes back."""
    mixture = GaussianMixture(16, context_dim=16)
    source, real = torch.randn(2, 30, 16), torch.ones(2, 30, dtype=torch.bool)
    carried, least = mixture.begin(source, real), float("inf")
    for _ in range(10):
        before = carried["mu"]
        _, carried = mixture.step(3 * torch.randn(2, 16), source, real, carried)
        least = min(least, float((carried["mu"] - before).detach().min()))
    prior = beta_binomial(10, 0.1, 0.9)
    mean = float(prior @ torch.arange(11.0))
    moving = DynamicConvolutionAttention(16, context_dim=16)
    at = torch.zeros(2, 30)
    at[:, 15] = 1.0
    weights, _ = moving.step(torch.randn(2, 16), source, real, {"weights": at})
    beyond = float((weights[:, :15].sum(1) + weights[:, 26:].sum(1)).detach().max())
    accuracy = {}
    for name, make in (
        ("gmm", lambda: GaussianMixture(32, context_dim=32)),
        ("dca", lambda: DynamicConvolutionAttention(32, context_dim=32)),
        ("content", lambda: GlobalAlignment(32, context_dim=32)),
    ):
        restart()
        accuracy[name] = copied(_copier(make()), 200, rows=8)
    yield claim("GMM means never decrease", "least step of a mean", least).at_least(
        0, "no step back"
    )
    yield claim("prior filter's weights", "sum of the prior", float(prior.sum())).within(
        1e-5, "1", value=1, because=FLOAT32
    )
    yield claim("prior filter's weights", "mean of the prior", mean).within(
        1e-4, "10 * 0.1", value=1, because=FLOAT32
    )
    yield claim("DCA alignment cannot", "mass behind or beyond 10 places, of 30", beyond).below(
        30 * 1e-6 * 100,
        "the floor of 1e-6",
        because="the floor against the largest prior weight, over 100 times its like",
    )
    for name in ("gmm", "dca"):
        yield claim(
            "both trained on copy", f"tokens right at length 200, {name}", accuracy[name]
        ).above(
            accuracy["content"],
            "content-based attention, trained alike",
            plus=0.3,
            because="align: far from what content does",
        )
