"""Probes on pairs, codes of heads, and measures of tuning equal sums by hand and planted facts."""

import math

import pytest
import torch

from regard.analysis.binding import (
    DiagonalPair,
    LinearPair,
    PointwisePair,
    QuadraticPair,
    balanced,
    binding_directions,
    guidance,
    shuffled,
    without,
)
from regard.analysis.tuning_shift import (
    blanked,
    by_gradient,
    changed,
    density,
    left_out,
    principal_words,
    word_pairs,
)
from regard.circuits.head_codes import area_under, discover_circuit, head_outputs
from regard.core.errors import ShapeError, ValueRangeError
from regard.models.loading import load


@pytest.mark.parametrize(
    "probe", [LinearPair(6), DiagonalPair(6), QuadraticPair(6, 2), PointwisePair(6, 3)]
)
def test_probes_say_the_same_of_a_pair_either_way(probe):
    torch.manual_seed(0)
    for p in probe.parameters():
        p.data.normal_()
    x, y = torch.randn(2, 5, 6)
    assert torch.allclose(probe(x, y), probe(y, x), atol=1e-6)


def test_the_quadratic_probe_is_its_form():
    torch.manual_seed(1)
    probe, x, y = QuadraticPair(6, 2), torch.randn(6), torch.randn(6)
    assert torch.allclose(probe(x, y), x @ probe.w.T @ probe.w @ y + probe.b)


def test_pairs_are_of_one_image_and_half_of_one_object():
    torch.manual_seed(2)
    image = torch.arange(7.0).repeat_interleave(10)
    objects = torch.randint(0, 3, (7, 10))
    x = torch.stack([image.view(7, 10), objects.float(), torch.arange(10.0).expand(7, 10)], -1)
    one, other, same = balanced(x, objects, 100)
    assert torch.equal(one[:, 0], other[:, 0])
    assert torch.equal(one[:, 1] == other[:, 1], same)
    assert bool((one[:, 2] != other[:, 2]).all())
    assert int(same.sum()) == 50


def test_what_is_taken_out_is_what_the_probe_reads():
    torch.manual_seed(3)
    x, w = torch.randn(4, 9, 12), torch.randn(3, 12)
    gone = without(x, w)
    assert (gone @ w.T).abs().max() < 1e-5
    assert torch.allclose(without(gone, w), gone, atol=1e-5)
    assert torch.allclose(without(x, w, 0.5), (x + gone) / 2, atol=1e-6)
    moved = shuffled(x, w)
    assert torch.allclose(without(moved, w), gone, atol=1e-5)
    assert torch.allclose((moved @ w.T).sum(1), (x @ w.T).sum(1), atol=1e-4)


def test_a_difference_of_like_objects_has_the_directions_of_the_code():
    torch.manual_seed(4)
    feature, codes = torch.randn(40, 12), torch.randn(2, 40, 2)
    axes = torch.linalg.qr(torch.randn(12, 2)).Q.T
    share, directions = binding_directions(*(feature + c @ axes for c in codes))
    assert float(share[:2].sum()) == pytest.approx(1.0, abs=1e-5)
    inside = directions[:2] @ axes.T @ axes
    assert torch.allclose(inside, directions[:2], atol=1e-4)


def test_guidance_is_the_correlation_over_pairs():
    torch.manual_seed(5)
    probe, x = QuadraticPair(6, 2), torch.randn(8, 6)
    told = probe(x[:, None], x[None]).detach()
    found = guidance(torch.stack([3 * told + 1, -told]), probe, x)
    assert found.tolist() == pytest.approx([1.0, -1.0], abs=1e-5)


def test_areas_are_shares_of_pairs_in_order():
    torch.manual_seed(6)
    scores, members = torch.randint(0, 5, (20,)).float(), torch.arange(20) < 6
    wins = [float(a > b) + 0.5 * float(a == b) for a in scores[:6] for b in scores[6:]]
    assert area_under(scores, members) == pytest.approx(sum(wins) / len(wins))


def test_a_head_that_speaks_of_the_task_alone_is_found():
    torch.manual_seed(7)
    things = 4 * torch.randn(6, 2, 8)
    thing = torch.randint(0, 2, (20, 6))
    thing[:10, 2], thing[10:, 2] = 0, 1
    x = things[torch.arange(6), thing] + 0.01 * torch.randn(20, 6, 8)
    circuit = discover_circuit(x[:10], x[10:], codes=64)
    assert int(circuit.heads.argmax()) == 2
    assert float(circuit.heads[2]) == 0.5  # one of its two codes
    assert 2 in circuit.members(1 / 6)
    others = [0, 1, 3, 4, 5]
    assert bool((circuit.pairs[2, others] > circuit.pairs[0, 1]).all())


def test_outputs_of_heads_are_what_the_next_weights_read():
    model, tokenizer = load()
    model = model.float()
    prompts = [torch.tensor(tokenizer(x)["input_ids"]) for x in ("import os", "def f(x):")]
    kept = []
    last = model.model.layers[-1].self_attn.o_proj
    handle = last.register_forward_pre_hook(lambda module, args: kept.append(args[0][0, -1]))
    found, names = head_outputs(model, prompts)
    handle.remove()
    heads = names[-1][0].heads
    for row, wanted in zip(found, kept, strict=True):
        assert torch.allclose(row[-heads:].flatten(), wanted, atol=1e-5)


def test_density_counts_the_words_that_depend():
    importance = torch.zeros(4, 6)
    importance[0], importance[1, 2], importance[2] = 1.0, 0.9, -1.0
    a = density(importance)
    assert a.tolist() == pytest.approx([6 ** (1 - 1 / 4), 1.0, 0.0, 0.0])
    s = torch.tensor([10.0, 8.0, 7.0])
    mixed = torch.cat([torch.ones(1, 3), s[None] / 10])
    assert float(density(mixed)[1]) == pytest.approx(float(s.sum() / s.pow(4).sum() ** 0.25))


def test_leaving_out_and_blanking_are_runs_without_the_word():
    torch.manual_seed(8)
    model, _ = load()
    model = model.float()
    prompt, said = torch.randint(20, 2000, (5,)), torch.randint(20, 2000, (3,))

    def told(ids=None, x=None, start=4):
        with torch.no_grad():
            logits = model(input_ids=ids, inputs_embeds=x).logits[0, start:-1]
        return logits.softmax(-1)[torch.arange(3), said]

    ids = torch.cat([prompt, said])
    whole = told(ids[None])
    fewer = torch.cat([ids[:2], ids[3:]])[None]
    assert torch.allclose(left_out(model, prompt, said)[2], whole - told(fewer, start=3), atol=1e-6)
    x = model.get_input_embeddings()(ids)[None].detach()
    x[0, 2] = 0
    assert torch.allclose(blanked(model, prompt, said)[2], whole - told(x=x), atol=1e-6)
    assert by_gradient(model, prompt, said).shape == (5, 3)


def test_gradients_are_blanking_where_the_model_is_linear():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(9, 4)

        def get_input_embeddings(self):
            return self.words

        def forward(self, input_ids=None, inputs_embeds=None):
            x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
            logits = 1e-3 * x.cumsum(1) @ self.words.weight.T
            return type("Out", (), {"logits": logits})

    torch.manual_seed(9)
    model, prompt, said = Linear(), torch.randint(0, 9, (6,)), torch.randint(0, 9, (2,))
    near, exact = by_gradient(model, prompt, said), blanked(model, prompt, said)
    assert torch.allclose(near, exact, rtol=0.02, atol=2e-6)


def test_pairs_of_words_and_principal_words_are_those_planted():
    torch.manual_seed(10)
    embedding = torch.nn.functional.normalize(torch.randn(30, 24), dim=-1)
    vectors = torch.eye(30)
    vectors[7] = vectors[3]
    found = word_pairs(embedding[[3]].T, embedding[[7]].T, embedding, vectors=vectors, top=1)
    assert found == {(3, 7)}
    assert changed(found, {(3, 7)}) == 0.0
    values = torch.randn(50, 1) * embedding[11] + 0.01 * torch.randn(50, 24)
    words, share = principal_words(values, embedding, components=1, top=1)
    assert words.tolist() == [[11]]
    assert float(share[0]) > 0.9
    assert math.isclose(changed(set(), set()), 0.0)


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: QuadraticPair(4, 5), ValueRangeError, "rank"),
        (lambda: LinearPair(4).fit(torch.zeros(2, 3, 4), torch.zeros(2, 4)), ShapeError, "objects"),
        (lambda: balanced(torch.zeros(2, 3, 4), torch.zeros(2, 3), 4), ValueRangeError, "objects"),
        (lambda: without(torch.zeros(4), torch.ones(1, 4), 2.0), ValueRangeError, "share"),
        (lambda: discover_circuit(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4)), ShapeError,
         "corrupted"),
        (lambda: density(torch.zeros(3)), ShapeError, "importance"),
        (lambda: density(torch.zeros(3, 3), least=11), ValueRangeError, "least"),
        (lambda: word_pairs(torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(9, 4)), ShapeError,
         "w_k"),
    ],
)  # fmt: skip
def test_bad_questions_are_answered_clearly(ask, error, says):
    with pytest.raises(error, match=says):
        ask()
