"""What one layer of attention learns with queries and keys left as they were drawn.

    f(x) = sum_m (1/N) sum_i relu(x~_0 W_m x~_i) v_m . x~_i,   x~ = (x, 1),

with W_m drawn once and v_m fitted by ridge regression: linear in the features

    phi_m(x) = (1/N) sum_i relu(x~_0 W_m x~_i) x~_i        (Fu 2023).

Sharing features among keys spares the samples that a plain random-feature network needs for N
times as many inputs; a mean of identity in W (`biased`) makes features of x_0 . x_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.errors import ShapeError, fail, shape_of
from regard.core.method import method


@method(
    "random_feature_attention_theory",
    call="import torch\n"
    "from regard.probes.random_features import RandomFeatureAttention\n"
    "query, keys, y = torch.randn(200, 8), torch.randn(200, 16, 8), torch.randn(200)\n"
    "said = RandomFeatureAttention(8, heads=50, biased=True).fit(query, keys, y)(query, keys)",
)
class RandomFeatureAttention:
    """Attention of `heads` drawn heads whose values are fitted.

    `biased` adds the identity to the x_0 . x_i part of each W.

    >>> layer = RandomFeatureAttention(3, heads=10)
    >>> layer.features(torch.randn(5, 3), torch.randn(5, 7, 3)).shape
    torch.Size([5, 40])
    """

    def __init__(self, dim: int, heads: int, *, biased: bool = False, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.w = 0.5 * torch.randn(heads, dim + 1, dim + 1, generator=draw)  # variance 1/4
        if biased:
            self.w[:, :dim, :dim] += torch.eye(dim)
        self.values: Tensor | None = None

    def features(self, query: Tensor, keys: Tensor) -> Tensor:
        """Features [b, heads (d + 1)] of queries [b, d] and keys [b, n, d]."""
        if keys.dim() != 3 or query.shape != (keys.shape[0], keys.shape[2]):
            fail(
                ShapeError, "keys", shape_of(keys), f"[b, n, d] for a query {shape_of(query)}",
                "give each query its keys",
            )  # fmt: skip
        query, keys = _with_one(query), _with_one(keys)
        scores = torch.einsum("bd,mde,bne->bmn", query, self.w.to(query), keys).relu()
        return torch.einsum("bmn,bne->bme", scores, keys).flatten(1) / keys.shape[1]

    def fit(
        self, query: Tensor, keys: Tensor, y: Tensor, penalty: float = 1e-3
    ) -> RandomFeatureAttention:
        """Fit the values to y [b]."""
        self.values = ridge(self.features(query, keys), y, penalty)
        return self

    def __call__(self, query: Tensor, keys: Tensor) -> Tensor:
        """Say y [b]."""
        if self.values is None:
            fail(ShapeError, "values", None, "fitted values", "call fit first")
        return self.features(query, keys) @ self.values


def plain_features(query: Tensor, keys: Tensor, count: int, seed: int = 0) -> Tensor:
    """Random features [b, count] of everything in a row: relu(W vec(x_0, ..., x_N))."""
    x = _with_one(torch.cat([query[:, None], keys], 1).flatten(1))
    draw = torch.Generator().manual_seed(seed)
    return (x @ torch.randn(x.shape[1], count, generator=draw).to(x) / x.shape[1] ** 0.5).relu()


def ridge(features: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Weights [f] of ridge regression on features [b, f], their mean square brought to 1."""
    size = features.square().mean().sqrt().clamp_min(1e-12)
    x = (features / size).double()
    b, f = x.shape
    # By the smaller of the two systems; the answers are equal.
    if f <= b:
        own = b * penalty * torch.eye(f, dtype=x.dtype)
        weights = torch.linalg.solve(x.T @ x + own, x.T @ y.double())
    else:
        own = b * penalty * torch.eye(b, dtype=x.dtype)
        weights = x.T @ torch.linalg.solve(x @ x.T + own, y.double())
    return (weights / size).to(features)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


__all__ = ["RandomFeatureAttention", "plain_features", "ridge"]
