"""Theories of small models: their measures equal sums by hand, and tell planted patterns."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core.errors import CapabilityError, ShapeError
from regard.layers.attention import Attention
from regard.layers.base import Scene
from regard.models.weights import closed_weights
from regard.probes.random_features import RandomFeatureAttention, plain_features, ridge
from regard.probes.rank_and_heads import full_rank_head, mean_error, nearest, of_rank, sphere
from regard.probes.reading import Reading
from regard.probes.regression_heads import (
    descent_step,
    head_pattern,
    regression_layer,
    ridge_answer,
    said_by_pattern,
)
from regard.probes.scan_and_snap import ScanAndSnap, descend, growth, rank_correlation
from regard.probes.topics import CLASSES, TopicAttention, topic_similarity


def test_counts_are_attention_over_a_sequence():
    torch.manual_seed(0)
    model = ScanAndSnap(3, 7, 4)
    model.z.data.normal_()
    model.y.data.normal_()
    tokens = torch.randint(0, 7, (2, 11))
    query = torch.tensor([2, 0])
    weights = torch.softmax(model.z[query].gather(1, tokens), -1)  # one weight for each place
    mixture = torch.einsum("bt,btl->bl", weights, F.one_hot(tokens, 7).float())
    counts = F.one_hot(tokens, 7).sum(1)
    assert torch.allclose(model.attention(query, counts), mixture, atol=1e-6)
    wanted = F.normalize(mixture, dim=-1) @ model.y
    assert torch.allclose(model(query, counts), wanted, atol=1e-6)


def test_growth_tells_common_tokens_from_distinct_ones():
    likelihood = torch.zeros(2, 3, 6)
    likelihood[0, 0, [0, 1, 2]] = torch.tensor([0.5, 0.3, 0.2])
    likelihood[0, 1, [0, 3]] = 0.5
    likelihood[1, 2, [4, 5]] = torch.tensor([0.9, 0.1])
    model = ScanAndSnap(2, 6, 3)
    model.z.data[0] = torch.tensor([-1.0, 0.3, 0.2, 0.4, 0.0, 0.0])
    model.z.data[1] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1, -0.7])
    found = growth(model, likelihood, [])
    assert found.common.tolist() == [-1.0]
    assert sorted(found.distinct.tolist()) == pytest.approx([-0.7, 0.1, 0.2, 0.3, 0.4])
    assert found.as_said == pytest.approx(5 / 6)
    assert found.order == pytest.approx(1.0)


def test_a_rate_of_nothing_leaves_attention_as_it_is():
    model = ScanAndSnap(1, 4, 2)
    batch = (torch.zeros(2).long(), torch.rand(2, 4) + 0.1, torch.tensor([0, 1]))
    entropies = descend(model, lambda: batch, 20, rate_y=1.0, rate_z=0.0, report=10)
    assert not model.z.any()
    assert model.y.any()
    assert entropies == pytest.approx([entropies[0]] * 3)


def test_rank_correlation_knows_ties():
    a, b = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([3.0, 3.0, 9.0])
    assert rank_correlation(a, b) == pytest.approx(1.0)
    assert rank_correlation(a, -b) == pytest.approx(-1.0)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_within_topics_is_that_of_the_matrix(causal):
    torch.manual_seed(1)
    layer = Attention(16, heads=2, causal=causal)
    tokens, topic_of = torch.randint(0, 9, (3, 14)), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, -1])
    x = torch.randn(3, 14, 16)
    probe = TopicAttention(topic_of)
    probe.show(Reading({"input_ids": tokens}))
    with regard.attach(layer, probe, check=False):
        layer(x)
    call = layer.call(Scene(x, x, False, torch.arange(14)))
    weights = closed_weights(call, "test")
    topics = topic_of[tokens]
    met = torch.ones(14, 14).tril().bool() if causal else torch.ones(14, 14).bool()
    word = (tokens[:, :, None] == tokens[:, None]) & ~torch.eye(14).bool() & met
    known = (topics[:, :, None] >= 0) & (topics[:, None] >= 0) & met
    same = topics[:, :, None] == topics[:, None]
    other_word = tokens[:, :, None] != tokens[:, None]
    wanted = {"same word": word, "same topic": same & known & other_word,
              "different topic": ~same & known}  # fmt: skip
    details = probe.told().details
    for name in CLASSES:
        pairs = wanted[name]
        mean = (weights * pairs[:, None]).sum((0, 2, 3)) / pairs.sum()
        (found,) = details[name].values()
        assert torch.allclose(found.float(), mean, atol=1e-5), name


def test_similarity_is_the_mean_of_inner_products():
    torch.manual_seed(2)
    embedding, topic_of = torch.randn(7, 5), torch.tensor([0, 0, 1, 1, 1, -1, 0])
    inside, outside = [], []
    for i in range(7):
        for j in range(7):
            if i != j and topic_of[i] >= 0 and topic_of[j] >= 0:
                there = inside if topic_of[i] == topic_of[j] else outside
                there.append(float(embedding[i] @ embedding[j]))
    wanted = sum(inside) / len(inside), sum(outside) / len(outside)
    assert topic_similarity(embedding, topic_of) == pytest.approx(wanted, abs=1e-5)


def planted(dim=3, w=0.3, mu=2.0):
    """Two heads in the pattern itself."""
    layer = regression_layer(dim, heads=2)
    with torch.no_grad():
        for part in (layer.to_q, layer.to_k, layer.to_v, layer.to_out):
            part.weight.zero_()
        for h, sign in enumerate((1, -1)):
            start = h * (dim + 1)
            rows = torch.arange(start, start + dim)
            layer.to_q.weight[rows, torch.arange(dim)] = sign * w
            layer.to_k.weight[rows, torch.arange(dim)] = 1.0
            layer.to_v.weight[start + dim, dim] = 1.0
            layer.to_out.weight[dim, start + dim] = sign * mu
    return layer


def test_a_planted_pattern_is_read_and_says_what_the_layer_says():
    torch.manual_seed(3)
    layer = planted()
    pattern = head_pattern(layer)
    assert pattern.w.tolist() == pytest.approx([0.3, -0.3])
    assert pattern.mu.tolist() == pytest.approx([2.0, -2.0])
    assert max(pattern.off_key_query, pattern.off_value, pattern.imbalance) < 1e-6
    x, y, query = torch.randn(5, 20, 3), torch.randn(5, 20), torch.randn(5, 3)
    prompt = torch.cat([x, y[..., None]], -1)
    said = layer(F.pad(query, (0, 1))[:, None], prompt)[:, 0, -1]
    assert torch.allclose(said, said_by_pattern(pattern, x, y, query), atol=1e-5)


def test_small_weights_make_a_debiased_step_of_descent():
    torch.manual_seed(4)
    w, mu = 1e-3, 0.5 / 1e-3
    pattern = head_pattern(planted(w=w, mu=mu).double())
    x, y, query = torch.randn(5, 20, 3) + 1, torch.randn(5, 20), torch.randn(5, 3)
    said = said_by_pattern(pattern, x.double(), y.double(), query.double())
    assert torch.allclose(said.float(), descent_step(x, y, query), atol=1e-2)
    assert not torch.allclose(said.float(), descent_step(x, y, query, debiased=False), atol=1e-1)


def test_ridge_without_noise_finds_beta():
    torch.manual_seed(5)
    beta, x, query = torch.randn(4, 3), torch.randn(4, 20, 3), torch.randn(4, 3)
    y = torch.einsum("bnd,bd->bn", x, beta)
    assert torch.allclose(ridge_answer(x, y, query, 1e-6), (beta * query).sum(-1), atol=1e-3)


def test_shared_keys_have_no_pattern_by_head():
    with pytest.raises(CapabilityError, match="key heads"):
        head_pattern(Attention(8, heads=2, kv_heads=1))


def test_features_are_a_sum_over_keys_one_by_one():
    torch.manual_seed(6)
    layer = RandomFeatureAttention(3, heads=4, biased=True)
    query, keys = torch.randn(2, 3), torch.randn(2, 5, 3)
    one = torch.ones(1)
    for b in range(2):
        wanted = torch.zeros(4, 4)
        for i in range(5):
            key = torch.cat([keys[b, i], one])
            for m in range(4):
                score = (torch.cat([query[b], one]) @ layer.w[m] @ key).relu()
                wanted[m] += score * key / 5
        assert torch.allclose(layer.features(query, keys)[b], wanted.flatten(), atol=1e-5)


@pytest.mark.parametrize("rows", [5, 40])
def test_both_systems_of_ridge_give_the_minimum(rows):
    torch.manual_seed(7)
    features, y = torch.randn(rows, 12), torch.randn(rows)
    size = features.square().mean().sqrt()
    weights = (ridge(features, y, 0.1) * size).requires_grad_()
    loss = (features / size @ weights - y).square().mean() + 0.1 * weights.square().sum()
    (slope,) = torch.autograd.grad(loss, weights)
    assert slope.abs().max() < 1e-4
    assert plain_features(torch.randn(3, 2), torch.randn(3, 4, 2), 9).shape == (3, 9)


def test_an_unfitted_layer_says_nothing():
    with pytest.raises(ShapeError, match="fit"):
        RandomFeatureAttention(2, 3)(torch.randn(1, 2), torch.randn(1, 4, 2))
    with pytest.raises(ShapeError, match="keys"):
        RandomFeatureAttention(2, 3).features(torch.randn(1, 2), torch.randn(2, 4, 2))


def test_the_exact_head_tends_to_the_nearest_point():
    torch.manual_seed(8)
    points, query, target = sphere(200, 6, 12)
    for i in range(5):
        near = max(range(6), key=lambda j, i=i: float(points[i, j] @ query[i]))
        assert torch.equal(target[i], points[i, near])
    assert torch.equal(nearest(points, query), target)
    errors = [mean_error(full_rank_head(12, s), points, query, target) for s in (1, 10, 1e4)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_ranks_times_heads_keep_the_number_of_weights():
    sizes = {sum(p.numel() for p in of_rank(16, r, 16 // r).parameters()) for r in (16, 4, 2, 1)}
    assert len(sizes) == 1
