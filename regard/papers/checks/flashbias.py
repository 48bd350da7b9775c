"""A low-rank bias in extra channels of q and k is exact, and needs no table of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.rule import Rule
from regard.core.score import Dot, LowRankBias
from regard.layers.bias_factors import alibi_bias, squared_distance_bias, svd_bias
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.attending import explicit
from regard.papers.shared.measure import Largest, gap
from regard.run.api import attend


def _bias_gap(bias: LowRankBias, table: Tensor) -> tuple[float, float]:
    """Gap of output and of the gradients between a bias that rides in q and k, and an explicit one.

    The gap is relative to the largest entry, in float32.
    """
    n = table.shape[-1]
    leaves = [torch.randn(1, 2, n, 32, requires_grad=True) for _ in range(3)]
    way = torch.randn(1, 2, n, 32)
    rule = Rule(score=Dot() + bias)
    ours = attend(*leaves, rule, executor="fused")
    theirs = explicit(*leaves, table)
    ours_grad = torch.autograd.grad(ours, leaves, way)
    theirs_grad = torch.autograd.grad(theirs, leaves, way)
    grads = [gap(a, b) / float(b.abs().max()) for a, b in zip(ours_grad, theirs_grad, strict=True)]
    return gap(ours, theirs) / float(theirs.detach().abs().max()), max(grads)


@check(
    "flashbias",
    left_out={"GPU for timing": "no accelerator in this check: see `make bench`"},
    beyond="memory inside PyTorch's fused kernel is not seen by the count",
)
def bias_in_channels() -> Claims:
    """A low-rank bias in extra channels of q and k is exact, and needs no table of pairs."""
    n = 96
    place = torch.arange(n, dtype=torch.float32)
    slopes = torch.tensor([0.25, 0.0625])
    x = torch.randn(n, 3)
    alibi_out, alibi_grad = _bias_gap(
        alibi_bias(slopes, n), -slopes.view(2, 1, 1) * (place[:, None] - place)
    )
    far_out, far_grad = _bias_gap(
        squared_distance_bias(x, x, -0.5), -0.5 * (x[:, None] - x).square().sum(-1)
    )

    table = torch.randn(2 * n - 1)[(place[:, None] - place).long() + n - 1]
    q, k, v = (torch.randn(1, 1, n, 32) for _ in range(3))
    whole = explicit(q, k, v, table)
    errors = []
    for rank in (1, 8, 32, n):
        found = attend(q, k, v, Dot() + svd_bias(table, rank=rank), executor="fused")
        errors.append(float((found - whole).norm() / whole.norm()))

    sizes = []
    for many in (4096, 8192):
        q, k, v = (torch.randn(1, 1, many, 32) for _ in range(3))
        u = torch.randn(1, 1, many, 2)
        with Largest() as largest:
            attend(q, k, v, Dot() + LowRankBias(u, u), executor="fused")
        sizes.append(largest.bytes)
    yield claim(
        "ALiBi and squared-distance", "ALiBi, relative difference of the output", alibi_out
    ).within(1e-5, "the explicit bias", because=CATALOGUE)
    yield claim(
        "ALiBi and squared-distance", "ALiBi, relative difference of gradients", alibi_grad
    ).within(1e-5, "the explicit bias", because=CATALOGUE)
    yield claim(
        "ALiBi and squared-distance", "squared distance, relative difference of the output", far_out
    ).within(1e-5, "the explicit bias", because=CATALOGUE)
    yield claim(
        "ALiBi and squared-distance", "squared distance, relative difference of gradients", far_grad
    ).within(1e-5, "the explicit bias", because=CATALOGUE)
    for i, rank in enumerate((8, 32, n), 1):
        yield claim(
            "SVD truncation", f"relative error of the output at rank {rank}", errors[i]
        ).below(errors[i - 1], "that of the rank before")
    yield claim("SVD truncation", f"error of the output at full rank {n}", errors[3]).within(
        1e-5, "0", because=FLOAT32
    )
    yield claim("peak memory", "largest tensor at 8k", sizes[1]).at_most(
        sizes[0], "at 4k", times=2.1, because="linear is 2 times, a table of pairs 4"
    )
