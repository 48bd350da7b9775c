"""Theories of small models: their measures equal sums by hand, and tell planted patterns."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.analysis.scan_and_snap import ScanAndSnap, descend, growth, rank_correlation
from regard.analysis.topics import CLASSES, TopicAttention, topic_similarity
from regard.layers.attention import Attention
from regard.layers.inputs import LayerInput
from regard.models.weights import closed_weights
from regard.probes.reading import Reading


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
    call = layer.call(LayerInput(x, x, False, torch.arange(14)))
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
