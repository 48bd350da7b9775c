"""Biases of pairs as products of two factors, so that any fused kernel adds them (FlashBias)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.score import LowRankBias


def alibi_bias(slopes: Tensor, n: int, m: int | None = None) -> LowRankBias:
    """ALiBi, -slope (i - j), at rank 2: slopes [h], for n queries that end with the m keys.

    >>> bias = alibi_bias(torch.tensor([0.5]), 3)
    >>> (bias.u @ bias.v.mT)[0, 0]
    tensor([[ 0.0000,  0.5000,  1.0000],
            [-0.5000,  0.0000,  0.5000],
            [-1.0000, -0.5000,  0.0000]])
    """
    if slopes.dim() != 1:
        fail(ShapeError, "slopes", shape_of(slopes), "[h]", "pass one slope for each head")
    m = n if m is None else m
    rows, cols = (torch.arange(x, device=slopes.device).to(slopes) for x in (n, m))
    u = torch.stack((-(rows + m - n), torch.ones_like(rows)), -1)
    v = torch.stack((torch.ones_like(cols), cols), -1)
    return LowRankBias((slopes[:, None, None] * u)[None], v[None, None])


def squared_distance_bias(x: Tensor, y: Tensor, weight: float | Tensor = -1.0) -> LowRankBias:
    """The bias weight |x_i - y_j|^2 of points x [..., n, c] and y [..., m, c], at rank c + 2.

    Points are [n, c], [h, n, c] or [b, h, n, c]; `weight` is a number or [h]. Both sets are moved
    to the mean of `y` first, which changes no distance and keeps the squares small.

    >>> x = torch.tensor([[0.0], [3.0]])
    >>> bias = squared_distance_bias(x, x)
    >>> (bias.u @ bias.v.mT)[0, 0]
    tensor([[ 0., -9.],
            [-9.,  0.]])
    """
    middle = y.mean(-2, keepdim=True)
    x, y = _by_head(x - middle), _by_head(y - middle)
    ones = x.new_ones((*x.shape[:-1], 1)), y.new_ones((*y.shape[:-1], 1))
    u = torch.cat((x.square().sum(-1, keepdim=True), ones[0], -2 * x), -1)
    v = torch.cat((ones[1], y.square().sum(-1, keepdim=True), y), -1)
    by = torch.as_tensor(weight).to(u)
    return LowRankBias(by.reshape(1, -1, 1, 1) * u, v)


def cosine_bias(x: Tensor, y: Tensor) -> LowRankBias:
    """The bias cos(x_i - y_j) of angles x [..., n] and y [..., m], at rank 2.

    >>> bias = cosine_bias(torch.tensor([0.0]), torch.tensor([0.0, torch.pi]))
    >>> (bias.u @ bias.v.mT)[0, 0]
    tensor([[ 1., -1.]])
    """
    return LowRankBias(*(_by_head(torch.stack((a.cos(), a.sin()), -1)) for a in (x, y)))


@method(
    "flashbias",
    call="import torch, regard\n"
    "from regard.layers.bias_factors import svd_bias\n"
    "bias = svd_bias(torch.randn(8, 1024, 4) @ torch.randn(8, 4, 1024), energy=0.99)\n"
    "q, k, v = (torch.randn(1, 8, 1024, 64) for _ in range(3))\n"
    "out = regard.attend(q, k, v, regard.Dot() + bias)",
)
def svd_bias(table: Tensor, energy: float = 0.99, *, rank: int | None = None) -> LowRankBias:
    """Factor a trained table [n, m], [h, n, m] or [b, h, n, m] once, by its singular values.

    The rank is the least that keeps `energy` of the squared singular values of every head, or the
    one given. A table that a window or a causal mask cuts is not low rank: factor it uncut.

    >>> table = torch.randn(2, 8, 3) @ torch.randn(2, 3, 8)
    >>> bias = svd_bias(table, energy=1 - 1e-9)
    >>> bias.u.shape, torch.allclose(bias.u @ bias.v.mT, table[None], atol=1e-5)
    (torch.Size([1, 2, 8, 3]), True)
    """
    if table.dim() < 2:
        fail(ShapeError, "table", shape_of(table), "[n, m], [h, n, m] or [b, h, n, m]",
             "pass a bias for each pair")  # fmt: skip
    if not 0 < energy <= 1:
        fail(ValueRangeError, "energy", energy, "a share above 0, to 1", "the paper keeps 0.99")
    full = min(table.shape[-2:])
    if rank is not None and not 1 <= rank <= full:
        fail(ValueRangeError, "rank", rank, f"1 to {full}", "keep some of the table")
    left, power, right = torch.linalg.svd(_by_head(table.double()), full_matrices=False)
    if rank is None:
        share = power.square().cumsum(-1)
        short = share < energy * share[..., -1:]
        rank = min(full, int(short.sum(-1).max()) + 1)
    root = power[..., :rank].sqrt()
    u, v = left[..., :rank] * root[..., None, :], right[..., :rank, :].mT * root[..., None, :]
    return LowRankBias(u.to(table).contiguous(), v.to(table).contiguous())


class BiasNetworks(nn.Module):
    """Two small networks whose product is a bias that depends on the tokens (AlphaFold's, say).

    From x [b, n, features] and y [b, m, features] each makes factors of `rank` for every head.
    `fit` trains them to a bias that a model computes; the model itself stays as it is.

    >>> BiasNetworks(6, heads=2, rank=4)(torch.randn(1, 5, 6)).u.shape
    torch.Size([1, 2, 5, 4])
    """

    def __init__(self, features: int, heads: int, *, rank: int, hidden: int = 64) -> None:
        super().__init__()
        self.heads, self.rank = heads, rank
        self.of_queries, self.of_keys = (
            nn.Sequential(
                nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
                nn.Linear(hidden, heads * rank),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor, y: Tensor | None = None) -> LowRankBias:
        """Build the bias of queries x [b, n, features] and keys y (x, if None)."""
        found = []
        for part, tokens in ((self.of_queries, x), (self.of_keys, x if y is None else y)):
            by_head: Tensor = part(tokens).unflatten(-1, (self.heads, self.rank))
            found.append(by_head.transpose(1, 2))
        return LowRankBias(*found)

    def fit(
        self, bias: Any, draw: Any, *, steps: int = 500, learning_rate: float = 3e-3
    ) -> list[float]:
        """Train on `steps` batches: `draw()` returns x or (x, y), `bias(x, y)` [b, h, n, m].

        Returns the mean squared difference at each step.
        """
        best, losses = torch.optim.Adam(self.parameters(), learning_rate), []
        for _ in range(steps):
            drawn = draw()
            x, y = (drawn, drawn) if isinstance(drawn, Tensor) else drawn
            made = self(x, y)
            with torch.no_grad():
                wanted = bias(x, y)
            loss = (made.u @ made.v.mT - wanted).square().mean()
            best.zero_grad()
            loss.backward()
            best.step()
            losses.append(float(loss.detach()))
        return losses


def _by_head(x: Tensor) -> Tensor:
    """Add the axes of batch and heads: [n, c] or [h, n, c] to [1, 1 or h, n, c]."""
    if x.dim() > 4 or x.dim() < 2:
        fail(ShapeError, "x", shape_of(x), "2 to 4 axes", "pass [n, c], [h, n, c] or [b, h, n, c]")
    return x[(None,) * (4 - x.dim())]
