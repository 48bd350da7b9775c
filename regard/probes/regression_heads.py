"""What heads learn of regression in context: the pattern of their weights, and what it computes.

A prompt holds pairs z_l = (x_l, y_l) with y_l = beta . x_l + noise, and a query (x, 0); one layer
of softmax attention says y. Trained, its key-query products become w_h diag(I, 0) and its values
mu_h on the label alone, with sum_h mu_h near 0 (He 2025), so that it says

    sum_h mu_h sum_l softmax_l(w_h x_l . x) y_l,

which for small w is a step of gradient descent with the mean of x taken out ("debiased").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, fail
from regard.core.method import method
from regard.layers.attention import Attention


@dataclass(frozen=True)
class HeadPattern:
    """How far heads follow the pattern: w and mu [heads], and the energy outside of it.

    `off_key_query` is the share of the key-query products' squares off their first d diagonal
    entries, `off_value` that of the last row of output-value products off the label, and
    `imbalance` is |sum mu| / sum |mu|.
    """

    w: Tensor
    mu: Tensor
    off_key_query: float
    off_value: float
    imbalance: float


@method(
    "icl_multihead_regression",
    call="from regard.probes.regression_heads import head_pattern, regression_layer\n"
    "layer = regression_layer(dim=4, heads=2)  # train it, then\n"
    "print(head_pattern(layer))",
)
def head_pattern(layer: Attention) -> HeadPattern:
    """Read the weights of a layer over tokens (x, y), the label last.

    >>> pattern = head_pattern(regression_layer(dim=3, heads=2))
    >>> pattern.w.shape
    torch.Size([2])
    """
    if layer.kv_heads != layer.heads:
        fail(
            CapabilityError, "layer", f"{layer.kv_heads} key heads for {layer.heads} heads",
            "a key head for each head", "make it with kv_heads=heads",
        )  # fmt: skip
    parts = (layer.to_q, layer.to_k, layer.to_v)
    q, k, v = (x.weight.detach().unflatten(0, (layer.heads, -1)) for x in parts)
    out = layer.to_out.weight.detach().unflatten(1, (layer.heads, -1)).transpose(0, 1)
    # The query's own label is 0: the last column meets nothing, and is never learned.
    key_query = (k.mT @ q)[..., :-1]  # [h, dim + 1, dim]
    values = (out @ v)[:, -1]  # what each head adds to the label [h, dim + 1]
    diagonal = key_query.diagonal(0, 1, 2)
    off = 1 - float(diagonal.square().sum() / key_query.square().sum())
    mu = values[:, -1]
    return HeadPattern(
        diagonal.mean(1), mu, off, 1 - float(mu.square().sum() / values.square().sum()),
        float(mu.sum().abs() / mu.abs().sum()),
    )  # fmt: skip


def regression_layer(dim: int, heads: int, scale: float = 0.1) -> Attention:
    """A layer that reads a prompt of (x, y) as its context, its weights small at first.

    Say `layer(query, prompt)[:, 0, -1]` for prompt [b, n, dim + 1] and query [b, 1, dim + 1].
    """
    from regard.core.score import Dot

    layer = Attention(dim + 1, heads, head_dim=dim + 1, context_dim=dim + 1, score=Dot(1.0))
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=scale)
    return layer


def said_by_pattern(pattern: HeadPattern, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """What the pattern alone says [b], for x [b, n, d], y [b, n] and query [b, d]."""
    scores = torch.einsum("h,bnd,bd->bhn", pattern.w, x, query)
    return torch.einsum("h,bhn,bn->b", pattern.mu, scores.softmax(-1), y)


def descent_step(x: Tensor, y: Tensor, query: Tensor, *, debiased: bool = True) -> Tensor:
    """One step of gradient descent from 0, of rate 1 [b]: query . mean_l (x_l - mean x) y_l."""
    from_mean = x - x.mean(1, keepdim=True) if debiased else x
    return torch.einsum("bnd,bn,bd->b", from_mean, y, query) / x.shape[1]


def ridge_answer(x: Tensor, y: Tensor, query: Tensor, penalty: float) -> Tensor:
    """Ridge regression [b]; with penalty = d noise^2 it is Bayes' answer for beta ~ N(0, I / d)."""
    own = penalty * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    beta = torch.linalg.solve(x.mT @ x + own, (x.mT @ y[..., None]))[..., 0]
    return (beta * query).sum(-1)


__all__ = [
    "HeadPattern", "descent_step", "head_pattern", "regression_layer", "ridge_answer",
    "said_by_pattern",
]  # fmt: skip
