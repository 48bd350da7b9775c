"""Laws of feature maps: what a product of features stands for, and that nothing overflows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core import features as maps
from regard.core.errors import ShapeError, ValueRangeError
from regard.run.scanning import scan

POSITIVE = [
    maps.elu_plus_one,
    maps.relu,
    maps.relu_power,
    maps.softmax_features,
    maps.softmax_pairs,
    maps.exponential,
]
ALL = [*POSITIVE, maps.identity, maps.unit, maps.standardized, maps.taylor]


def vectors(seed, *shape, spread=1.0):
    make = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=make, dtype=torch.float64)


@pytest.mark.parametrize("phi", ALL)
def test_gradients_are_those_of_finite_differences(seed, phi):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(phi, (x,))


@pytest.mark.parametrize("phi", ALL)
@pytest.mark.parametrize("value", [0.0, -30.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_finite_and_keep_the_dtype(phi, value, dtype):
    x = torch.full((2, 3), value, dtype=dtype, requires_grad=True)
    out = phi(x)
    (gradient,) = torch.autograd.grad(out.float().sum(), x)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("phi", POSITIVE)
def test_positive_maps_are_positive_so_a_normalized_scan_averages(seed, phi):
    q, k = torch.randn(2, 1, 2, 20, 4)
    assert (phi(q) >= 0).all()
    v = torch.rand(1, 2, 20, 3)
    out, _ = scan(phi(q), phi(k), v, normalize=1e-6)
    assert (out <= 1 + 1e-5).all()
    assert (out >= 0).all()


@given(st.integers(0, 2**31), st.integers(1, 9))
def test_taylor_is_the_exponentials_beginning(seed, d):
    q, k = vectors(seed, 2, 5, d)
    x = q @ k.mT
    second = maps.taylor(q) @ maps.taylor(k).mT
    torch.testing.assert_close(second, 1 + x + x.square() / 2)
    torch.testing.assert_close(maps.taylor(q, 1) @ maps.taylor(k, 1).mT, 1 + x)
    assert (second > 0).all()
    assert maps.taylor(q).shape[-1] == 1 + d + d * (d + 1) // 2


@given(st.integers(0, 2**31), st.floats(1, 6), st.floats(0.01, 1e3))
def test_relu_power_keeps_the_length_of_the_positive_part(seed, power, spread):
    x = vectors(seed, 4, 6, spread=spread)
    got = maps.relu_power(x, power)
    torch.testing.assert_close(got.norm(dim=-1), x.relu().norm(dim=-1))
    assert torch.equal(got > 0, x > 0) or power > 1  # small entries may vanish when sharpened
    torch.testing.assert_close(maps.relu_power(3 * x, power), 3 * got)


def test_unit_vectors_give_cosines_and_standardized_ones_mean_zero(seed):
    x, y = torch.randn(2, 5, 8, dtype=torch.float64)
    got = (maps.unit(x) * maps.unit(y)).sum(-1)
    torch.testing.assert_close(got, torch.cosine_similarity(x, y))
    normal = maps.standardized(x)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(normal.std(-1, correction=0), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("kind", [maps.PositiveFeatures, maps.FourierFeatures])
def test_random_features_estimate_the_exponential_without_bias(seed, kind):
    # Short vectors: the estimate of a large weight is heavy-tailed, and 200 draws would not do.
    q, k = 0.1 * torch.randn(2, 6, 16, dtype=torch.float64)
    want = (q @ k.mT).exp()
    draws = []
    for i in range(200):
        phi = kind(maps.draw(16, 32, generator=torch.Generator().manual_seed(seed + i)))
        draws.append(phi(q) @ phi(k).mT)
    estimates = torch.stack(draws)
    standard_error = estimates.std(0) / math.sqrt(len(draws))
    assert ((estimates.mean(0) - want).abs() < 6 * standard_error).all()


def test_a_shift_of_positive_features_cancels_in_a_normalized_scan(seed):
    phi = maps.PositiveFeatures(maps.draw(8, 32))
    q, k = torch.randn(2, 1, 1, 15, 8, dtype=torch.float64)
    v = torch.randn(1, 1, 15, 3, dtype=torch.float64)
    plain, _ = scan(phi(q), phi(k), v, normalize=1e-12)
    shifted, _ = scan(phi(q, shift=1.5), phi(k, shift=-0.5), v, normalize=1e-12)
    torch.testing.assert_close(shifted, plain)


@pytest.mark.parametrize("spread", [0.8, 1.0, 1.5, 2.0])
def test_matched_rates_give_log_weights_the_spread_of_softmax(seed, spread):
    q, k = spread * torch.randn(2, 600, 64)
    alpha_q, alpha_k = maps.matched_rates(q, k)

    def variance(weights):
        logs = weights.log()
        return (logs - logs.mean(-1, keepdim=True)).var()

    want = variance((q @ k.mT / 8).softmax(-1))
    got = variance(maps.exponential(q, alpha_q) @ maps.exponential(k, alpha_k).mT)
    plain = variance(maps.exponential(q) @ maps.exponential(k).mT)
    assert abs(got / want - 1) < 0.3
    assert plain < want / 4
    assert not alpha_q.requires_grad


def test_directions_are_orthogonal_in_blocks_and_as_long_as_normal_ones(seed):
    directions = maps.draw(8, 20, generator=torch.Generator().manual_seed(seed))
    assert directions.shape == (20, 8)
    for block in directions.split(8):
        gram = block @ block.mT
        assert (gram - gram.diagonal().diag()).abs().max() < 1e-4
    lengths = maps.draw(8, 4000, generator=torch.Generator().manual_seed(seed)).norm(dim=-1)
    assert abs(lengths.square().mean() / 8 - 1) < 0.1


def test_bad_arguments_are_named():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueRangeError, match="`order`"):
        maps.taylor(x, 3)
    with pytest.raises(ValueRangeError, match="`power`"):
        maps.relu_power(x, 0.5)
    with pytest.raises(ValueRangeError, match="`features`"):
        maps.draw(3, 0)
    with pytest.raises(ShapeError, match="`x`"):
        maps.PositiveFeatures(maps.draw(4, 8))(x)
