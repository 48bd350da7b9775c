"""Explainers find the planted words, and still rank the rest differently."""

from __future__ import annotations

import torch

from regard.circuits.explaining import EXPLAINERS, Question, integrated_gradients, occlusion
from regard.circuits.faithfulness import agreement, kendall
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.keyword_classifier import KEYWORDS, TOKENS, VOCABULARY, asked, trained


@check(
    "order_in_the_court", beyond="the four data sets, BiLSTMs with additive attention, deep-SHAP"
)
def court() -> Claims:
    """Explainers find the planted words, and still rank the rest differently."""
    model = trained()
    questions, _ = asked(model, 24)
    gaps, sizes = [], []
    for question in questions:
        ends = torch.stack([question.embeddings, question.absent])
        with torch.no_grad():
            there, gone = question.score(ends).tolist()
        gaps.append(abs(float(integrated_gradients(question, 200).sum()) - (there - gone)))
        sizes.append(abs(there - gone))
    complete = sum(gaps) / sum(sizes)

    rows = [torch.randn(17) for _ in range(400)]
    chance = torch.tensor([kendall(a, b) for a, b in zip(rows[::2], rows[1::2], strict=True)])
    error = float(chance.std() / len(chance) ** 0.5)

    # One word in each text decides, and nothing else matters but by noise of the model.
    planted, words, few = model, [], ("integrated_gradients", "occlusion", "lime")
    for _ in range(40):
        tokens = torch.randint(1 + 2 * KEYWORDS, VOCABULARY, (1, TOKENS))
        tokens[0, int(torch.randint(TOKENS, ()))] = int(torch.randint(1, 1 + 2 * KEYWORDS, ()))
        x = planted.read(tokens)[0].detach()
        with torch.no_grad():
            sign = float(planted(x[None]).sign())
        # Mypy infers no type of s.
        words.append(Question(lambda e, s=sign: s * planted(e), x))  # type: ignore[misc]
    some = {name: EXPLAINERS[name] for name in few}
    # The classification token is no word of the text.
    keep = [torch.arange(TOKENS + 1) > 0] * 40
    table = agreement(words, some, k=1, keep=keep)
    pairs = [(a, b) for i, a in enumerate(few) for b in few[i + 1 :]]
    taus = [table.mean(a, b) for a, b in pairs]
    overlaps = [table.overlap[a, b] for a, b in pairs]
    again = agreement(questions[:5], {"occlusion": occlusion},
                      maps={"again": [occlusion(q) for q in questions[:5]]})  # fmt: skip
    yield claim("Completeness of integrated", "what is missing of the change", complete).below(
        0.02, "the catalogue's bound", because=CATALOGUE
    )
    yield claim(
        "duplicate method gives", "tau of a method with itself", again.mean("again", "occlusion")
    ).within(1e-9, "1", value=1, because=FLOAT64)
    yield claim(
        "random scores average",
        "mean tau by chance, in standard errors",
        float(chance.mean()) / error,
        over="median",  # of twenty seeds chance alone takes one beyond two errors
    ).within(2, "0", because=CATALOGUE)
    yield claim(
        "On a planted keyword", "least share of texts with one top word", min(overlaps)
    ).above(0.8, "most texts", because="explainers may tie where the model is not sure")
    yield claim("On a planted keyword", "largest mean tau of whole lists", max(taus)).below(
        0.6, "the catalogue's bound", because=CATALOGUE
    )
