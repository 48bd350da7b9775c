"""Overlaps of Hamming balls are counted over all addresses; the layer weighs by them."""

import itertools
import math

import pytest
import torch

import regard
from regard.core.errors import ValueRangeError
from regard.layers.sparse_distributed import (
    Overlap,
    SparseDistributed,
    fitted_beta,
    matched_radius,
    overlap,
)
from regard.probes.temperature import Beta


@pytest.mark.parametrize("bits", [5, 8])
def test_overlaps_are_those_counted_over_all_addresses(bits):
    addresses = range(1 << bits)
    for radius in range(bits + 1):
        near = {x for x in addresses if x.bit_count() <= radius}
        for v, count in enumerate(overlap(bits, radius)):
            other = (1 << v) - 1  # v bits away from 0
            assert count == sum((x ^ other).bit_count() <= radius for x in near)


@pytest.mark.parametrize("radius", [20, 24, 28])
def test_overlaps_never_rise_with_distance(radius):
    counts = overlap(64, radius)
    assert all(a >= b for a, b in itertools.pairwise(counts))
    assert counts[0] == sum(math.comb(64, x) for x in range(radius + 1))


def test_the_layer_weighs_binary_patterns_by_their_overlap():
    torch.manual_seed(0)
    bits, radius = 16, 6
    patterns = torch.randint(0, 2, (9, bits)) * 2.0 - 1
    query = torch.randint(0, 2, (3, bits)) * 2.0 - 1
    values = torch.randn(9, 4)
    away = (query[:, None] != patterns).sum(-1)
    counts = torch.tensor(overlap(bits, radius)).float()[away]
    wanted = counts @ values / counts.sum(1, keepdim=True)
    q, k = (x[None, None].double() / bits**0.5 for x in (query, patterns))
    rule = regard.Rule(score=regard.Dot(1.0) >> Overlap(bits, radius))
    out = regard.attend(q, k, values[None, None].double(), rule)[0, 0]
    assert torch.allclose(out.float(), wanted, atol=1e-5)


def test_a_memory_of_drawn_neurons_comes_near_as_their_number_grows():
    torch.manual_seed(1)
    bits, radius = 16, 6
    counts = overlap(bits, radius)
    gaps = []
    for neurons in (500, 50_000):
        wrong = 0.0
        for _ in range(20):
            address = torch.randint(0, 2, (neurons, bits))
            one, other = torch.zeros(bits), torch.zeros(bits)
            other[:4] = 1
            near = ((address != one).sum(1) <= radius) & ((address != other).sum(1) <= radius)
            wrong += (float(near.float().mean()) - counts[4] / 2**bits) ** 2
        gaps.append(math.sqrt(wrong / 20))
    assert 5 < gaps[0] / gaps[1] < 20  # 1 / sqrt(r) is a factor of ten


def test_sharper_memories_have_smaller_radii():
    betas = [fitted_beta(64, d) for d in range(10, 31)]
    assert betas == sorted(betas, reverse=True)
    assert matched_radius(fitted_beta(64, 20)) == 20


def test_beta_is_the_product_of_the_lengths():
    torch.manual_seed(2)
    layer = SparseDistributed(32, heads=4)
    probe = Beta()
    with regard.attach(layer, probe, check=False):
        layer(torch.randn(2, 7, 32))
    (values,) = probe.told().values.values()
    assert torch.allclose(values.float(), torch.ones(4))  # unit vectors, at scale 1
    plain = regard.layer("mha", 32, heads=4)
    probe, x = Beta(), torch.randn(2, 7, 32)
    with regard.attach(plain, probe, check=False):
        plain(x)
    q, (k, _) = plain.queries(x), plain.keys(x)
    wanted = (q.norm(dim=-1).mean(-1) * k.norm(dim=-1).mean(-1)).mean(0) / 8**0.5
    (values,) = probe.told().values.values()
    assert torch.allclose(values.float(), wanted, atol=1e-5)
    assert all(1 <= r < 32 for r in next(iter(probe.told().details["radius"].values())))


def test_a_radius_beyond_the_bits_is_refused():
    with pytest.raises(ValueRangeError, match="radius"):
        overlap(8, 9)
