"""Quantized attention: weights on a log2 scale, activations in groups of similar size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.models.site import Sites
from regard.models.weights import closed_weights
from regard.policies.base import Step
from regard.policies.denoising import denoises
from regard.policies.kinds import SelectAndRun
from regard.policies.registry import register
from regard.run.counting import multiply
from regard.run.executor import Answer


def log2_quantized(
    weights: Tensor, bits: int = 4, start: int | None = 0, delta: Tensor | float | None = None
) -> Tensor:
    """Round weights [b, h, n, m] to delta 2^-n, n = 0, ..., 2^bits - 1; zeros stay.

    delta is the largest weight of a row of the batch (its prompt) over heads, queries and keys,
    unless it is given. The column `start`, which peaks near 1, is left as it is and does not count
    for delta. Weights that are not clamped change by at most a factor of the root of 2.

    >>> w = torch.tensor([[[[0.9, 0.08, 0.02]]]])
    >>> log2_quantized(w).tolist()[0][0][0]
    [0.8999999761581421, 0.07999999821186066, 0.019999999552965164]
    """
    rest = weights
    if start is not None:
        rest = weights.clone()
        rest[..., start] = 0.0
    top = rest.amax((1, 2, 3), keepdim=True) if delta is None else torch.as_tensor(delta).to(rest)
    scaled = rest / top.clamp(min=torch.finfo(rest.dtype).tiny)
    place = (-torch.log2(scaled)).round().clamp(0, 2**bits - 1)
    found = torch.where(rest > 0, top * torch.exp2(-place), 0.0)
    if start is not None:
        found[..., start] = weights[..., start]
    return found


@method("dgq", call='from regard.policies import policy; policy("dgq")')
@register("dgq")
@dataclass
class Dgq(SelectAndRun):
    """Quantize the weights of cross-attention to a log2 scale of `bits` bits, scaled per prompt.

    `start` is the column of the start token, which is not quantized; None where the tokenizer has
    none. The matrix of weights, queries by words, is materialized: this simulates quantization, and
    saves neither time nor memory. `group_quantized` is the quantizer of
    activations. (DGQ, Ryu et al. 2025)
    """

    what: ClassVar[str] = "images"
    needs_cache: ClassVar[bool] = False
    bits: int = 4
    start: int | None = 0

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model denoises and has cross-attention to words."""
        return denoises(model, sites, "cross")

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Check the bits."""
        super().begin(model, sites, budget)
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            fail(ValueRangeError, "bits", self.bits, "1 to 8", "pass bits=4")

    def select(self, step: Step) -> Call:
        """Attend to all words."""
        return step.call

    def run(self, call: Call) -> Tensor | None:
        """Average values by quantized weights."""
        if self.budget.whole or call.site.kind != "cross":
            return None
        weights = log2_quantized(closed_weights(call, self.name), self.bits, self.start)
        out = multiply(weights, expand_heads(call.v, call.h).to(weights.dtype))
        return out.to(call.q.dtype)


def group_quantized(x: Tensor, bits: int = 8, groups: int = 8, dim: int | None = None) -> Tensor:
    """Round activations x [..., n, c] to `bits` bits, with one scale for each group of `dim`.

    Channels (-1) or pixels (-2) are sorted by their largest magnitude, and split into `groups` of
    equal size. Without `dim` it is the one along which magnitudes differ most.

    >>> x = torch.tensor([[1.0, 100.0], [0.5, -70.0]])
    >>> (group_quantized(x, 8, 2, dim=-1) - x).abs().max() < 0.4
    tensor(True)
    """
    if not 2 <= bits <= 16:
        fail(ValueRangeError, "bits", bits, "2 to 16", "pass bits=8")
    dim = outlier_dim(x) if dim is None else dim
    if dim not in (-1, -2) or not 1 <= groups <= x.shape[dim]:
        fail(
            ValueRangeError, "groups", f"{groups} of dim {dim}",
            f"1 to {x.shape[-1]} groups of dim -1 or -2", "pass groups=8, dim=-1",
        )  # fmt: skip
    size = sizes_along(x, dim)
    rank = size.argsort().argsort()
    group = rank * groups // len(size)
    top = size.new_zeros(groups).scatter_reduce(0, group, size, "amax")
    scale = (top / (2 ** (bits - 1) - 1)).clamp(min=torch.finfo(x.dtype).tiny)[group]
    scale = scale if dim == -1 else scale[:, None]
    found: Tensor = (x / scale).round() * scale
    return found


def sizes_along(x: Tensor, dim: int) -> Tensor:
    """Return the largest magnitude in each channel (-1) or pixel (-2)."""
    sizes: Tensor = x.abs().transpose(dim, -1).flatten(0, -2).amax(0)
    return sizes


def outlier_dim(x: Tensor) -> int:
    """Return the dim (-1 or -2) with outliers: the largest ratio of maximum to median magnitude.

    >>> outlier_dim(torch.tensor([[1.0, 50.0], [1.0, 60.0]]))
    -1
    """
    sizes = {dim: sizes_along(x, dim) for dim in (-1, -2)}
    return max(sizes, key=lambda d: float(sizes[d].max() / sizes[d].median().clamp(min=1e-12)))
