"""Explainers and their judges equal sums by hand, captum's, and what linear models know."""

import math

import pytest
import torch
from torch import nn

from regard.circuits.explaining import (
    EXPLAINERS,
    Question,
    deep_lift,
    gradient_x_input,
    integrated_gradients,
    occlusion,
    question_of,
)
from regard.circuits.faithfulness import agreement, erased, head_maps, judged, kendall, top_overlap
from regard.core.errors import RegardError, ShapeError, ValueRangeError
from regard.layers.attention import Attention
from regard.models.attach import attach
from regard.models.loading import load
from regard.models.stage import Stage


class Reader(nn.Module):
    """A small attention classifier on embeddings."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.look, self.say = Attention(dim, heads=2), nn.Linear(dim, 1)

    def forward(self, x):
        return self.say(torch.tanh(x + self.look(x)).mean(1))[:, 0]


def linear(n=8, d=4):
    weight = torch.randn(d)
    return Question(lambda x: (x @ weight).sum(1), torch.randn(n, d))


def naive_kendall(a, b):
    same = other = tie_a = tie_b = 0
    for i in range(len(a)):
        for j in range(i):
            x, y = a[i] - a[j], b[i] - b[j]
            same += x * y > 0
            other += x * y < 0
            tie_a += x == 0
            tie_b += y == 0
    pairs = len(a) * (len(a) - 1) // 2
    below = math.sqrt((pairs - tie_a) * (pairs - tie_b))
    return (same - other) / below if below else math.nan


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_that_of_pairs_counted_one_by_one(seed):
    torch.manual_seed(seed)
    a, b = torch.randint(0, 4, (2, 12)).tolist()
    found = kendall(torch.tensor(a), torch.tensor(b))
    assert found == pytest.approx(naive_kendall(a, b))
    assert kendall(torch.tensor(a), torch.tensor(a)) == pytest.approx(1.0)


def test_tau_of_what_ranks_nothing_is_no_number():
    assert math.isnan(kendall(torch.ones(5), torch.arange(5.0)))
    assert top_overlap(torch.arange(9.0), torch.arange(9.0), 3) == 1.0


def test_on_a_linear_model_every_explainer_gives_its_terms():
    torch.manual_seed(0)
    question = linear()
    wanted = occlusion(question)
    for name, explain in EXPLAINERS.items():
        if name != "chance":
            # SHAP's noise on its ends, and LIME's ridge, leave a little.
            loose = 0.35 if name == "gradient_shap" else 0.05 if name == "lime" else 1e-5
            assert torch.allclose(explain(question), wanted, atol=loose), name


def test_integrated_gradients_are_complete():
    torch.manual_seed(1)
    reader = Reader()
    question = Question(reader, torch.randn(9, 16))
    with torch.no_grad():
        wanted = reader(question.embeddings[None]) - reader(question.absent[None])
    assert torch.allclose(integrated_gradients(question).sum(), wanted[0], atol=1e-4)


def test_explainers_are_captums():
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    torch.manual_seed(2)
    reader = Reader()
    x, base = torch.randn(7, 16), torch.randn(16)
    question = Question(reader, x, base)
    bases = base.expand(1, 7, 16)
    ours = integrated_gradients(question, steps=32)
    theirs = captum.IntegratedGradients(reader).attribute(
        x[None], bases, n_steps=32, method="riemann_middle"
    )
    assert torch.allclose(ours, theirs[0].sum(-1).float(), atol=1e-5)
    theirs = captum.InputXGradient(reader).attribute(x[None].requires_grad_())
    assert torch.allclose(gradient_x_input(question), theirs[0].sum(-1).detach(), atol=1e-6)
    mask = torch.arange(7)[None, :, None].expand(1, 7, 16)
    with torch.no_grad():
        theirs = captum.FeatureAblation(reader).attribute(x[None], bases, feature_mask=mask)
    assert torch.allclose(occlusion(question), theirs[0, :, 0], atol=1e-5)


def test_deep_lift_of_a_linear_module_gives_its_terms():
    pytest.importorskip("captum.attr", reason="captum is not installed")

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.say = nn.Linear(4, 1, bias=False)

        def forward(self, x):
            return self.say(x).sum((1, 2))

    torch.manual_seed(3)
    module = Sum()
    question = Question(module, torch.randn(6, 4))
    assert torch.allclose(deep_lift(module)(question), occlusion(question), atol=1e-5)


def test_erasing_is_what_a_loop_over_tokens_gives():
    torch.manual_seed(4)
    reader = Reader()
    question, ranking = Question(reader, torch.randn(10, 16)), torch.randn(10)
    shares, order = (0.1, 0.3, 0.5), ranking.argsort(descending=True)
    without, alone = [], []
    with torch.no_grad():
        whole = reader(question.embeddings[None])[0]
        for share in shares:
            top = order[: math.ceil(share * 10)]
            less, only = question.embeddings.clone(), torch.zeros(10, 16)
            less[top], only[top] = 0.0, question.embeddings[top]
            without.append(float(whole - reader(less[None])[0]))
            alone.append(float(whole - reader(only[None])[0]))
    found = erased(question, ranking, shares)
    assert found == pytest.approx((sum(without) / 3, sum(alone) / 3), abs=1e-5)


def test_the_true_ranking_beats_chance_and_its_reverse_does_not():
    torch.manual_seed(5)
    question = Question(lambda x: x.sum((1, 2)), torch.rand(20, 3) ** 4)
    truth = question.embeddings.sum(1)
    good, bad = judged(question, {"good": truth, "bad": -truth})
    assert good.beaten == 1.0
    assert bad.beaten == 0.0
    assert good.tau == pytest.approx(1.0)
    assert good.comprehensiveness > good.by_chance[0] > bad.comprehensiveness
    assert good.sufficiency < good.by_chance[1] < bad.sufficiency


class Whole(Stage):
    want = ("weights",)

    def __init__(self):
        super().__init__()
        self.found = []

    def see(self, call, result):
        self.found.append(result.weights)


def test_rows_of_heads_are_those_of_the_matrix():
    model, tokenizer = load()
    ids = torch.tensor(tokenizer("def look(self, here):\n    return here")["input_ids"])
    question = question_of(model, ids, target=5)
    maps = head_maps(model, question.embeddings)
    with attach(model, stage := Whole(), check=False), torch.no_grad():
        model(input_ids=ids[None])
    for layer, weights in enumerate(stage.found):
        for head in range(weights.shape[1]):
            wanted = weights[0, head, -1].float()
            assert torch.allclose(maps[f"L{layer}H{head}"], wanted, atol=1e-3)
    mean = stage.found[-1][0, :, -1].float().mean(0)
    assert torch.allclose(maps["attention"], mean, atol=1e-3)
    assert occlusion(question).shape == ids.shape
    with pytest.raises(ValueRangeError, match="row"):
        head_maps(model, question.embeddings, row=len(ids))


def test_agreement_with_itself_is_whole_and_with_chance_none():
    torch.manual_seed(6)
    questions = [linear(20) for _ in range(30)]
    same = [occlusion(q) for q in questions]
    table = agreement(
        questions, {"occlusion": occlusion}, maps={"again": same, "chance": torch.randn(30, 20)}
    )
    assert table.mean("again", "occlusion") == pytest.approx(1.0)
    mean, low, high, count = table.tau["occlusion", "chance"]
    assert low < 0 < high
    assert (count, abs(mean) < 0.1) == (30, True)
    assert len(table.to_frame()) == 3


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: Question(torch.sum, torch.zeros(3).long()), ShapeError, "embeddings"),
        (lambda: Question(torch.sum, torch.zeros(3, 2), torch.zeros(5)), ShapeError, "baseline"),
        (lambda: kendall(torch.zeros(3), torch.zeros(4)), ShapeError, "b"),
        (lambda: erased(linear(), torch.zeros(8), (2.0,)), ValueRangeError, "shares"),
        (lambda: erased(linear(), torch.zeros(3)), ShapeError, "ranking"),
        (lambda: integrated_gradients(linear(), 0), ValueRangeError, "steps"),
        (lambda: agreement([linear()], {}, maps={"a": []}), ShapeError, "maps"),
    ],
)
def test_bad_questions_are_answered_clearly(ask, error, says):
    with pytest.raises(error, match=says) as raised:
        ask()
    assert isinstance(raised.value, RegardError)
