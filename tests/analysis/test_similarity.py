"""Distances, clusters, Shapley values, rank and rotary pairs against their definitions."""

import math

import pytest
import torch

import regard
from regard.analysis.head_distance import plane
from regard.analysis.similarity import Distances, HeadMaps, joint_embedding, neuron_view
from regard.circuits.shapley import bernstein, exact, sampled, shapley_heads
from regard.core.errors import CapabilityError, RuleError, ValueRangeError
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, SoftCap
from regard.core.support import Causal, Window
from regard.core.weigh import Sigmoid, Softmax
from regard.models.attach import attach, hook_of
from regard.probes.position_heads import (
    RotaryPairs,
    StreamingHeads,
    contributions,
    correlation,
    ranks,
)
from regard.probes.rank import EffectiveRank, singular_values
from regard.run.rows import rows_of
from regard.run.runner import run
from tests.architectures import DECODERS, build
from tests.naive import CAUSAL, looked, pointing, random_call, site, weights

IDS = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))


def seen(*calls, rows=512) -> HeadMaps:
    maps = HeadMaps(rows=rows)
    for call in calls:
        maps.see(call, run(call))
    return maps


def test_distances_are_those_of_the_rows():
    calls = [random_call(seed=s, layer=s) for s in range(2)]
    every = torch.cat([weights(c).transpose(0, 1).flatten(1, 2) for c in calls])  # [8, rows, m]
    js, cosine = torch.zeros(2, 8, 8, dtype=torch.float64)
    for i in range(8):
        for j in range(8):
            a, b = every[i], every[j]
            m = (a + b) / 2
            kl = [torch.special.xlogy(x, x / m.clamp(min=1e-300)).sum(1) for x in (a, b)]
            js[i, j] = ((kl[0] + kl[1]) / 2 / math.log(2)).clamp(min=0).sqrt().mean()
            cosine[i, j] = 1 - torch.cosine_similarity(a, b, dim=1).mean()
    assert torch.allclose(seen(*calls).distances("js").values, js, atol=1e-5)
    assert torch.allclose(seen(*calls).distances("cosine", block=5).values, cosine, atol=1e-5)


def test_copies_are_alike_and_others_are_not():
    call = random_call(heads=2, groups=2)
    twice = call.replace(site=site(2, layer=1))
    found = seen(call, twice).distances()
    assert float(found.values[0, 2]) < 1e-6
    assert float(found.values[0, 1]) > 0.05
    pair = found.nearest(1)[0]
    assert pair[0][1] == pair[1][1]
    groups = found.clusters(2)
    assert [[h for _, h in group] for group in groups] == [[0, 0], [1, 1]]
    layers = found.layers()
    assert torch.allclose(layers, layers.T)
    places = plane(found.values)
    assert float((places[0] - places[2]).norm()) < 1e-5
    apart = torch.cdist(places, places)
    assert torch.allclose(apart[0, 1], found.values[0, 1], atol=1e-6)


def test_one_shift_and_its_opposite_are_as_far_as_can_be():
    a, b = [max(i - 1, 0) for i in range(10)], list(range(10))
    found = seen(pointing([a, b])).distances()
    assert float(found.values[0, 1]) == pytest.approx(0.9)  # the first rows are the same


def test_what_cannot_be_compared_is_said():
    with pytest.raises(RuleError, match="nothing seen"):
        HeadMaps().distances()
    with pytest.raises(RuleError, match="one of"):
        seen(random_call()).distances("euclid")
    with pytest.raises(CapabilityError, match="unlike lengths"):
        seen(random_call(), random_call(n=12)).distances()
    with pytest.raises(ValueRangeError, match="groups"):
        Distances([(site(1), 0)], torch.zeros(1, 1), "js").clusters(2)


def test_neighborhoods_keep_what_matches_together():
    """Queries that look for one of three far keys lie beside it in the plane."""
    pytest.importorskip("umap", reason="pip install umap-learn")
    torch.manual_seed(0)
    centers = 8 * torch.eye(3, 16)
    group = torch.arange(60) % 3
    q, k = (centers[group] + 0.3 * torch.randn(60, 16) for _ in range(2))
    a, b = joint_embedding(q, k).neighborhoods(near=10)
    assert a.shape == b.shape == (60, 2)
    nearest = torch.cdist(a, b).argmin(1)
    assert float((group[nearest] == group).float().mean()) > 0.95


def test_joint_embedding_leaves_the_weights_and_follows_distances_better():
    torch.manual_seed(0)
    q, k = 0.2 * torch.randn(60, 8) + 3, 4 * torch.randn(80, 8) - 1
    for scales in (None, [0.1, 5.0]):
        joint = joint_embedding(q, k, scales)
        before = (q.double() @ k.double().T).softmax(1)
        assert torch.allclose((joint.q @ joint.k.T).softmax(1), before, atol=1e-9)
        fits = []
        for c in (joint.scale, 1.0):
            moved = k.double() + joint.shift
            dots = ranks((q.double() @ moved.T).flatten()[:, None])
            near = ranks(-torch.cdist(c * q.double(), moved / c).flatten()[:, None])
            fits.append(float(correlation(dots, near)[0, 0]))
        assert fits[0] >= fits[1]
    assert joint_embedding(q, k).scale != 1.0
    flat_q, flat_k = joint.places()
    assert flat_q.shape == (60, 2)
    assert flat_k.shape == (80, 2)


def test_two_groups_that_look_at_each_other_are_neighbors():
    torch.manual_seed(0)
    side = torch.tensor([1.0] * 10 + [-1.0] * 10)[:, None]
    q = torch.cat([3 * side, 0.1 * torch.randn(20, 5)], 1)
    k = torch.cat([3 * side, 0.1 * torch.randn(20, 5)], 1)
    joint = joint_embedding(q, k)
    nearest = torch.cdist(*joint.places()).argmin(1)
    assert bool(((nearest < 10) == (torch.arange(20) < 10)).all())


def test_a_query_laid_open_gives_its_weights_again():
    call = random_call()
    for head in range(4):
        view = neuron_view(call, head, 9)
        assert torch.allclose(view.products.sum(1) * 8**-0.5, view.scores)
        assert torch.allclose(view.weights, weights(call)[0, head, 9], atol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(support=Causal(), score=Dot(0.3)),
        Rule(Causal(), Dot() + Alibi.for_heads(4)),
        Rule(Causal(), Dot() >> SoftCap(0.5)),
        Rule(Causal() & Window(5), Dot(0.7) + Alibi.for_heads(4) >> SoftCap(1.0)),
        Rule(Causal(), weigh=Softmax(plus_one=True)),
        Rule(Causal(), weigh=Sigmoid(-1.0)),
    ],
    ids=repr,
)
def test_a_query_laid_open_obeys_the_whole_rule(rule):
    call = random_call().replace(rule=rule)
    for head in range(4):
        view = neuron_view(call, head, 9)
        assert torch.allclose(view.weights, weights(call)[0, head, 9], atol=1e-6)


def test_shapley_values_of_games_whose_values_are_known():
    worth = torch.tensor([0.1, 0.4, -0.2, 0.05], dtype=torch.float64)

    def additive(inside):
        return float(worth[list(inside)].sum()) if inside else 0.0

    assert torch.allclose(exact(additive, 4), worth)
    found = sampled(additive, 4, 3)
    assert torch.allclose(found.values, worth)
    assert float(found.values.sum()) == pytest.approx(found.full - found.empty)

    def pairs(inside):  # two players are worth something together, as are three others
        return float({0, 1} <= inside) + 0.5 * float({2, 3, 4} <= inside) - 0.2 * (5 in inside)

    truth = exact(pairs, 6)
    assert torch.allclose(truth, torch.tensor([0.5, 0.5, 1 / 6, 1 / 6, 1 / 6, -0.2]).double())
    many = sampled(pairs, 6, 300, width=1.0, seed=1)
    assert bool(((many.values - truth).abs() <= many.bound).all())
    assert many.negative() == [5]
    assert int(many.samples.max()) <= 300
    short = sampled(pairs, 6, 50, truncate=0.5, seed=2)
    assert float(short.values[:2].min()) > 0
    assert bernstein(0.1, 1, 1.0, 0.05) == math.inf
    with pytest.raises(ValueRangeError, match="at most 16"):
        exact(pairs, 20)
    with pytest.raises(ValueRangeError, match="at least 1"):
        sampled(pairs, 6, 0)


def test_settled_players_are_not_sampled_again():
    found = sampled(lambda inside: float(0 in inside), 3, 400, width=1.0, delta=0.1)
    assert found.values.tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert int(found.samples[0]) < 100 < int(found.samples[1])


def test_shapley_values_of_heads():
    torch.manual_seed(0)
    model = build("llama", DECODERS["llama"], causal=True).eval()
    for p in model.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    heads = [(s, h) for s in hook_of(model)[1] for h in range(2)]

    def metric(model):
        return float(model(IDS).logits[:, -1, 7].mean().detach())

    found = shapley_heads(model, metric, heads, permutations=4)
    assert float(found.values.sum()) == pytest.approx(found.full - found.empty, abs=1e-5)
    assert found.full == pytest.approx(metric(model))
    assert found.scores().array()[:, 2:].size == 4
    assert bool(torch.tensor(found.scores().array()[:, 2:]).isnan().all())


def test_rank_of_known_maps_and_of_the_matrix():
    even = random_call(regard.Rule(), heads=2, groups=2)
    even = even.replace(q=torch.zeros_like(even.q))
    assert torch.allclose(looked(EffectiveRank(), even), torch.ones(2, dtype=torch.float64),
                          atol=1e-5)  # fmt: skip
    own = pointing([list(range(20))])
    assert float(looked(EffectiveRank(), own)[0]) == pytest.approx(20.0, abs=1e-5)
    call = random_call(b=1)
    values = torch.linalg.svdvals(weights(call))
    assert torch.allclose(singular_values(call), values, atol=1e-6)
    stable = looked(EffectiveRank(definition="stable"), call)
    wanted = values.square().sum(-1) / values[..., 0].square()
    assert torch.allclose(stable, wanted[0], atol=1e-6)
    # A sketch finds a rank that is small.
    few = random_call(regard.Rule(), n=200, b=1)
    few = few.replace(q=few.q * (torch.arange(200) % 3 == 0)[:, None].double())
    narrow = looked(EffectiveRank(sketch=16), few)
    assert float(narrow.max()) <= 16


def test_streaming_is_the_weight_on_both_ends():
    call = random_call()
    found = looked(StreamingHeads(2, 5), call)
    i, j = torch.arange(24)[:, None], torch.arange(24)
    ends = (j < 2) | (i - j < 5)
    rows = ((j <= i) & ~ends).any(1)
    wanted = (weights(call) * ends).sum(-1)[:, :, rows].mean((0, 2))
    assert torch.allclose(found, wanted, atol=1e-6)
    assert (
        float(looked(StreamingHeads(1, 2), pointing([max(i - 1, 0) for i in range(9)]))[0])
        > 1 - 1e-6
    )
    with pytest.raises(ValueRangeError, match="at least 1"):
        StreamingHeads(0)


def rotated(x: torch.Tensor, base=10000.0) -> torch.Tensor:
    n, d = x.shape[-2:]
    angle = torch.arange(n)[:, None] * base ** (-2 * torch.arange(d // 2) / d)
    a, b = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def test_rotary_pairs_sum_to_the_scores_and_find_positional_heads():
    call = random_call()
    i, j = torch.tensor([5, 20, 23]), torch.tensor([1, 20, 9])
    scores = (call.q @ call.k.repeat_interleave(2, 1).transpose(-1, -2)) * 8**-0.5
    for interleaved in (False, True):
        parts = contributions(call, i, j, interleaved)
        for head in range(4):
            total = parts[head].sum(1).view(2, 3)
            assert torch.allclose(total, scores[:, head, i, j])
    n, d = 256, 32
    same = torch.zeros(1, 3, n, d)
    same[:, 0, :, d // 2 - 3 : d // 2] = 1.0  # energy in the slowest pairs
    same[:, 1, :, :3] = 1.0  # in the fastest
    torch.manual_seed(0)
    same[:, 2] = torch.randn(1, n, d)  # no position: not turned
    turned = rotated(same)
    turned[:, 2] = same[:, 2]
    keys = turned.clone()
    keys[:, 2] = torch.randn(1, n, d)
    place = site(3)
    made = random_call(CAUSAL).replace(q=turned, k=keys, v=keys, site=place)
    found = looked(RotaryPairs(), made)
    assert int(found.argmax()) == 0
    assert float(found[0]) > 0.9
    assert float(found[1]) == 0.0
    assert float(found[2]) < 0.05
    assert float(looked(RotaryPairs(definition="mean"), made)[1]) == 0.0
    with pytest.raises(CapabilityError, match="8 tokens"):
        looked(RotaryPairs(), random_call(n=4))


@pytest.mark.parametrize("rows", [slice(0, 24), slice(7, 9), slice(23, 24)])
def test_some_rows_see_what_they_saw_among_all(rows):
    rule = regard.Rule(regard.Causal() & regard.Window(6))
    call = random_call(rule)
    assert torch.allclose(weights(rows_of(call, rows)), weights(call)[:, :, rows])
    placed = call.replace(q_positions=torch.arange(24), k_positions=torch.arange(24))
    assert torch.allclose(weights(rows_of(placed, rows)), weights(call)[:, :, rows])
    with pytest.raises(ValueRangeError, match="some queries"):
        rows_of(call, slice(5, 5))


def test_models_can_be_watched_by_all_of_these():
    model = build("llama", DECODERS["llama"], causal=True)
    maps = HeadMaps()
    with attach(model, maps, check=False), torch.no_grad():
        model(IDS)
    assert maps.distances().values.shape == (8, 8)
    found = regard.see(model, IDS, ["patterns", "rank"]).scores
    assert {"rank", "rotary"} <= set(found)
