"""Matched rates spread log-weights as softmax's spread; rates get no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.features import matched_rates
from regard.layers.polynomial import LogNormal, LogNormalWithBlocks
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.linear_cost import scene_of, written_out
from regard.papers.shared.measure import gap


def _row_spread(log_weights: Tensor) -> Tensor:
    return (log_weights - log_weights.mean(-1, keepdim=True)).square().mean()


@check("lln_attention")
def log_normal() -> Claims:
    """Matched rates spread log-weights as softmax's spread; rates get no gradient."""
    spreads, unmatched = [], []
    for std in (0.7, 1.0, 1.4, 2.0):
        q, k = std * torch.randn(2048, 64), std * torch.randn(2048, 64)
        softmax = (q @ k.T / 8).log_softmax(-1)
        for rates, kept in ((matched_rates(q, k), spreads), ((1.0, 1.0), unmatched)):
            weights = ((rates[0] * q).exp() @ (rates[1] * k).exp().T).log()
            kept.append(float(_row_spread(weights) / _row_spread(softmax)))
    layer = LogNormal(32, heads=2, causal=True).train()
    x = torch.randn(1, 40, 32)
    layer(x).sum().backward()
    frozen = not layer.alphas.requires_grad and layer.alphas.grad is None
    layer.eval()
    q, (k, v) = layer.queries(x), layer.keys(x)
    linear = gap(layer.look(q, k, v, scene_of(x)), written_out(q @ k.mT, v, True))
    both = LogNormalWithBlocks(32, heads=2, blocks=8, causal=True).eval()
    changed = x.clone()
    changed[:, 30:] = 0
    leak = gap(both(changed)[:, :30], both(x)[:, :30])
    for std, ours, theirs in zip((0.7, 1.0, 1.4, 2.0), spreads, unmatched, strict=True):
        yield claim("For Gaussian q,k", f"variance of log-weights at std {std}", ours).within(
            0.2, "that of softmax", value=1, because=CATALOGUE
        )
        yield claim("For Gaussian q,k", f"variance at std {std}, alpha = beta = 1", theirs).below(
            1, "that of softmax", times=0.1, because=CATALOGUE
        )
    yield claim("Causal prefix form", "difference from the dense form", linear).within(
        1e-4, "the masked dense form", because=CATALOGUE
    )
    yield claim("Causal prefix form", "change before a changed token", leak).within(
        1e-5, "none", because=FLOAT32
    )
    yield claim("measured alpha, beta", "they require or have a gradient", not frozen).equals(
        False, "constants"
    )
