"""Maps by word, dependency skill, probes and distances equal counts by hand and planted heads."""

import json
import math

import pytest
import torch

import regard
from regard.analysis.dependency import AttentionProbe, DependencyTree, antecedents, dependency_skill
from regard.analysis.head_distance import head_distances, plane
from regard.analysis.overview import (
    confidence,
    draw_overview,
    exported,
    overview,
    semantic_score,
)
from regard.core.errors import ShapeError, ValueRangeError
from regard.layers.attention import Attention
from regard.models.stage import Edit
from regard.probes.wordpieces import FeltWeights, whole_maps, word_maps


def rows(*shape):
    return torch.rand(*shape).softmax(-1)


def tree(n=9):
    """A random tree, with the link named by its direction."""
    heads = torch.tensor([-1] + [int(torch.randint(0, i, ())) for i in range(1, n)])
    order = torch.randperm(n)
    moved = torch.full((n,), -1)
    for word, head in enumerate(heads.tolist()):
        moved[order[word]] = -1 if head < 0 else order[head]
    names = tuple("root" if h < 0 else "left" if h < i else "right"
                  for i, h in enumerate(moved.tolist()))  # fmt: skip
    return DependencyTree(moved, names)


def test_words_get_what_their_pieces_get_and_give_their_mean():
    torch.manual_seed(0)
    weights, word_of = rows(2, 6, 6), [0, 1, 1, -1, 2, 2]
    found = word_maps(weights, word_of)
    for a in range(3):
        for b in range(3):
            given = [i for i, w in enumerate(word_of) if w == a]
            got = [j for j, w in enumerate(word_of) if w == b]
            wanted = sum(weights[:, i, j] for i in given for j in got) / len(given)
            assert torch.allclose(found[:, a, b], wanted, atol=1e-6)
    whole = word_maps(rows(6, 6), [0, 1, 1, 1, 2, 2])
    assert torch.allclose(whole.sum(-1), torch.ones(3))


def test_whole_maps_are_softmax_rows():
    torch.manual_seed(1)
    layer, x = Attention(16, heads=4), torch.randn(2, 5, 16)
    (maps,) = whole_maps(layer, x=x).values()
    q, (k, _) = layer.queries(x), layer.keys(x)
    assert torch.allclose(maps, (q @ k.mT / 2).softmax(-1), atol=1e-6)


def test_felt_weights_are_the_slope_of_the_loss():
    torch.manual_seed(2)
    layer, x, step = Attention(8, heads=2).double(), torch.randn(1, 4, 8).double(), 1e-6

    def loss(change=None):
        with regard.attach(layer, [] if change is None else [change], check=False):
            return layer(x).square().sum()

    stage = FeltWeights()
    with regard.attach(layer, stage, check=False):
        layer(x).square().sum().backward()
    (felt,) = stage.found.values()
    for h, i, j in ((0, 1, 2), (1, 3, 0)):
        bump = torch.zeros(1, 2, 4, 4).double()
        bump[0, h, i, j] = step
        slope = (loss(Edit("prob", lambda w, b=bump: w + b)) - loss()) / step
        assert float(felt[0, h, i, j]) == pytest.approx(abs(float(slope.detach())), rel=1e-3)


def test_skill_is_counted_word_by_word():
    torch.manual_seed(3)
    trees = [tree() for _ in range(12)]
    maps = [rows(3, 9, 9) for _ in trees]
    skill = dependency_skill(maps, trees)
    for relation in ("left", "right"):
        hits, many, far = torch.zeros(2, 3), 0, {}
        for x, t in zip(maps, trees, strict=True):
            for word, head in enumerate(t.heads.tolist()):
                if head < 0 or t.relations[word] != relation:
                    continue
                many += 1
                far[head - word] = far.get(head - word, 0) + 1
                for h in range(3):
                    others = [j for j in range(9) if j != word]
                    hits[0, h] += max(others, key=lambda j: float(x[h, word, j])) == head
                    hits[1, h] += max(others, key=lambda j: float(x[h, j, word])) == head
        assert skill.links[relation] == many
        assert torch.allclose(skill.accuracy[relation].float(), hits / many)
        assert skill.offsets[relation][1] == max(far.values()) / many


def test_words_left_out_are_said_by_no_head():
    t = DependencyTree(torch.tensor([2, 2, -1, -1]), ("a", "a", "root", "sep"),
             torch.tensor([False, False, False, True]))  # fmt: skip
    weights = torch.zeros(1, 4, 4)
    weights[0, :, 3], weights[0, :, 2] = 0.9, 0.1  # rests on the separator
    assert dependency_skill([weights], [t]).best("a") == (0, "to the head", 1.0)


def test_the_probe_is_the_sum_it_says_and_learns_the_planted_head():
    torch.manual_seed(4)
    trees = [tree() for _ in range(20)]
    maps = []
    for t in trees:
        x = rows(5, 9, 9)
        x[2] = 0.1 * x[2] + 0.9 * torch.eye(9)[t.heads.clamp(min=0)]
        maps.append(x)
    probe = AttentionProbe(5)
    probe.w.data.normal_()
    probe.u.data.normal_()
    logits = probe(maps[0])
    wanted = sum(probe.w[k] * maps[0][k, 3, 7] + probe.u[k] * maps[0][k, 7, 3] for k in range(5))
    assert torch.allclose(logits[7, 3], wanted)  # whether 3 is the head of 7
    learned = AttentionProbe(5).fit(maps, trees)
    sizes = torch.cat([learned.w, learned.u]).abs()
    assert int(sizes.argmax()) % 5 == 2
    assert learned.score(maps, trees) > 0.99


def test_antecedents_look_among_earlier_mentions():
    weights = torch.zeros(2, 8, 8)
    weights[0, 5, 1], weights[0, 7, 5] = 0.9, 0.6  # the first head is right both times
    weights[1, 5, 3], weights[1, 7, 6] = 0.9, 0.9  # the second looks elsewhere; ties fall first
    found = antecedents(weights, [1, 3, 5, 7], [0, 1, 0, 0])
    assert found.tolist() == [1.0, 0.5]


def test_distances_of_heads_are_divergences_of_rows():
    torch.manual_seed(5)
    maps = [rows(4, 6, 6), rows(4, 3, 3)]
    maps[0][3], maps[1][3] = maps[0][0], maps[1][0]
    found = head_distances(maps)
    for a in range(4):
        for b in range(4):
            wanted = 0.0
            for x in maps:
                for p, q in zip(x[a].tolist(), x[b].tolist(), strict=True):
                    mid = [(y + z) / 2 for y, z in zip(p, q, strict=True)]
                    wanted += sum(y * math.log(y / m) for y, m in zip(p, mid, strict=True)) / 2
                    wanted += sum(y * math.log(y / m) for y, m in zip(q, mid, strict=True)) / 2
            assert float(found[a, b]) == pytest.approx(wanted, abs=1e-6)
    assert float(found[0, 3]) == pytest.approx(0, abs=1e-6)
    places = torch.randn(6, 2, dtype=torch.float64)
    apart = torch.cdist(places, places)
    assert torch.allclose(torch.cdist(plane(apart), plane(apart)), apart, atol=1e-6)


def test_scores_of_perfect_heads():
    torch.manual_seed(6)
    t = tree()
    follows = torch.eye(9)[t.heads.clamp(min=0)]
    saliency = torch.rand(9)
    felt = (saliency / saliency.sum()).expand(9, 9)
    uniform = torch.full((9, 9), 1 / 9)
    maps = torch.stack([follows, felt, uniform])
    cells = overview({4: [maps]}, [t], [saliency])
    assert cells[0].syntactic == cells[0].confidence == 1.0
    assert cells[1].semantic == pytest.approx(1.0, abs=1e-5)
    assert cells[0].semantic < cells[1].semantic
    assert cells[2].confidence == pytest.approx(1 / 9)
    assert float(semantic_score(maps, saliency, definition="cosine")[1]) == pytest.approx(1.0)
    assert confidence(maps, keep=torch.arange(9) < 3).shape == (3,)


def test_edges_are_the_weights_bit_for_bit(tmp_path):
    torch.manual_seed(7)
    maps, t = rows(2, 5, 5), tree(5)
    cells = overview({0: [maps]}, [t], [torch.rand(5)])
    told = json.loads(json.dumps(exported(cells, {0: maps}, 0.2)))
    for head in range(2):
        back = torch.zeros(5, 5)
        for i, j, weight in told["edges"][f"0.{head}"]:
            back[i, j] = weight
        assert torch.equal(back, torch.where(maps[head] >= 0.2, maps[head], 0.0))
    pytest.importorskip("matplotlib")
    draw_overview(cells, str(tmp_path / "heads.png"))
    assert (tmp_path / "heads.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: DependencyTree(torch.tensor([0]), ("a", "b")), ShapeError, "heads"),
        (lambda: DependencyTree(torch.tensor([5, -1]), ("a", "b")), ValueRangeError, "heads"),
        (lambda: word_maps(rows(3, 3), [0, 1]), ShapeError, "word_of"),
        (lambda: dependency_skill([rows(1, 3, 3)], [tree(4)]), ShapeError, "maps"),
        (lambda: head_distances([]), ShapeError, "maps"),
        (lambda: plane(torch.zeros(2, 2), 5), ValueRangeError, "dimensions"),
        (lambda: semantic_score(rows(1, 3, 3), torch.ones(2)), ShapeError, "saliency"),
        (lambda: semantic_score(rows(1, 3, 3), torch.ones(3), definition="x"),
         ValueRangeError, "cosine"),
    ],
)  # fmt: skip
def test_bad_questions_are_answered_clearly(ask, error, says):
    with pytest.raises(error, match=says):
        ask()
