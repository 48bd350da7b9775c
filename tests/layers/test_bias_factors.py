"""Factored biases against their tables, and networks that learn one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core import errors
from regard.layers.bias_factors import (
    BiasNetworks,
    alibi_bias,
    cosine_bias,
    squared_distance_bias,
    svd_bias,
)


def product(bias):
    return bias.u @ bias.v.mT


def peer(bias, table, n, m):
    q, k, v = torch.randn(2, 3, n, 8), torch.randn(2, 3, m, 8), torch.randn(2, 3, m, 8)
    ours = regard.attend(q, k, v, regard.Dot() + bias, executor="fused")
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=table.expand(2, 3, n, m))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("n", "m"), [(9, 9), (4, 9)])
def test_alibi(n, m):
    slopes = torch.tensor([0.5, 0.25, 0.125])
    i, j = torch.arange(m - n, m)[:, None], torch.arange(m)
    peer(alibi_bias(slopes, n, m), -slopes.view(3, 1, 1) * (i - j), n, m)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_squared_distances(shape):
    # Far from the origin, where squares would cancel.
    x, y = 100 + torch.randn(*shape, 7, 3), 100 + torch.randn(*shape, 5, 3)
    weight = torch.tensor([-0.5, -1.0, 0.25])
    table = weight.view(3, 1, 1) * torch.cdist(x.double(), y.double()).float().square()
    peer(squared_distance_bias(x, y, weight), table, 7, 5)


def test_cosine():
    x, y = 6 * torch.rand(7), 6 * torch.rand(5)
    peer(cosine_bias(x, y), (x[:, None] - y).cos(), 7, 5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_the_svd_is_the_best_of_its_rank(shape):
    table = torch.randn(*shape, 8, 6)
    for rank in range(1, 7):
        gone = (product(svd_bias(table, rank=rank)) - table).square().sum((-1, -2))
        power = torch.linalg.svdvals(table.double())[..., rank:].square().sum(-1)
        torch.testing.assert_close(gone.double().view(power.shape), power, atol=1e-4, rtol=1e-4)
    peer(svd_bias(table, energy=1), table, 8, 6)


def test_energy_is_kept_by_every_head_with_the_least_rank():
    table = torch.randn(3, 20, 12) @ torch.diag(0.6 ** torch.arange(12.0))
    bias = svd_bias(table, energy=0.99)
    rank = bias.u.shape[-1]

    def kept(some):
        return 1 - (product(some)[0] - table).square().sum((1, 2)) / table.square().sum((1, 2))

    assert kept(bias).min() >= 0.99 > kept(svd_bias(table, rank=rank - 1)).min()


def test_a_table_of_zeros_has_a_rank():
    assert product(svd_bias(torch.zeros(4, 4))).abs().max() == 0


def test_wrong_input_is_named():
    for wrong in (0, 5):
        with pytest.raises(errors.ValueRangeError, match="rank"):
            svd_bias(torch.randn(4, 4), rank=wrong)
    with pytest.raises(errors.ValueRangeError, match="energy"):
        svd_bias(torch.randn(4, 4), energy=0)
    with pytest.raises(errors.ShapeError):
        alibi_bias(torch.randn(2, 2), 4)


def test_networks_learn_a_bias_of_the_tokens():
    """Of new tokens, most of the variance of a bias that no table could hold."""
    mix = torch.randn(2, 3, 3)

    def wanted(x, y):
        return torch.einsum("bnc,hcd,bmd->bhnm", x.tanh(), mix, y.sin())

    networks = BiasNetworks(3, heads=2, rank=4)
    losses = networks.fit(wanted, lambda: torch.randn(8, 16, 3), steps=400)
    x = torch.randn(8, 16, 3)
    with torch.no_grad():
        bias, table = networks(x), wanted(x, x)
        assert (product(bias) - table).square().mean() < 0.1 * table.var()
    assert losses[-1] < 0.1 * losses[0]
    q = torch.randn(8, 2, 16, 8)
    ours = regard.attend(q, q, q, regard.Dot() + bias, executor="fused")
    theirs = F.scaled_dot_product_attention(q, q, q, attn_mask=product(bias))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
