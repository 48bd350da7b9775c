"""Methods agree on a linear model; on a trained transformer attention agrees with none."""

from __future__ import annotations

import math

import torch

from regard.circuits.explaining import EXPLAINERS, Question
from regard.circuits.faithfulness import agreement, kendall
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.keyword_classifier import TOKENS, asked, texts, trained

TOLD = ("gradient_x_input", "integrated_gradients", "gradient_shap", "occlusion", "lime")


@check(
    "attention_explanation_agreement",
    beyond="DistilBERT and the five data sets of the paper; pair tasks",
)
def agreeing() -> Claims:
    """Methods agree on a linear model; on a trained transformer attention agrees with none."""
    weight = torch.randn(24)
    bags = [Question(lambda x: (x @ weight).sum(1), torch.randn(14, 24)) for _ in range(8)]
    some = {name: EXPLAINERS[name] for name in TOLD}
    flat = agreement(bags, some, maps={"uniform": [torch.ones(14)] * 8}, signed=True)
    linear = min(flat.mean(a, b) for i, a in enumerate(TOLD) for b in TOLD[:i])
    x = torch.randn(20)
    model = trained()
    tokens, label = texts(400)
    with torch.no_grad():
        right = float(((model(model.read(tokens)) > 0) == (label > 0)).float().mean())
    questions, maps = asked(model, 24)
    keep = [torch.arange(TOKENS + 1) > 0] * 24
    table = agreement(questions, some, maps={"attention": maps}, keep=keep)
    attention = {name: table.mean("attention", name) for name in TOLD}
    others = {f"{a} / {b}": table.mean(a, b) for i, a in enumerate(TOLD) for b in TOLD[:i]}
    yield claim("On a linear bag-of-words", "least tau of five explainers", linear).above(
        0.95, "the catalogue's bound", because=CATALOGUE
    )
    yield claim(
        "On a linear bag-of-words",
        "uniform attention's tau is undefined",
        math.isnan(flat.mean("uniform", "occlusion")),
    ).equals(True, "undefined")
    yield claim("On a linear bag-of-words", "tau(x, x)", kendall(x, x)).equals(1.0, "1")
    yield claim("On a linear bag-of-words", "tau(x, -x)", kendall(x, -x)).equals(-1.0, "-1")
    for name, tau in {**{f"attention / {n}": t for n, t in attention.items()}, **others}.items():
        yield claim("Transformer: all off-diagonal", f"mean tau, {name}", tau).below(
            0.5, "the catalogue's bound", because=CATALOGUE
        )
    yield claim("Transformer: all off-diagonal", "accuracy of the transformer", right).above(
        0.9, "a task that is learned", because="or nothing would be explained"
    )
