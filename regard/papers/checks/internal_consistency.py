"""Layers that add to one answer agree, a last layer that flips agrees with none."""

from __future__ import annotations

import torch

from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.seeding import restart
from regard.papers.shared.shipped_model import demo
from regard.probes.logits import agreement, weighted_vote
from regard.probes.prompt_parts import SpanShare
from regard.probes.reading import Reading


@check(
    "internal_consistency",
    beyond="reasoning paths of large models, where IC is to tell right answers from wrong ones",
    same="layers agree or do not whatever is drawn, and the model that ships has one text",
)
def consistency() -> Claims:
    """Layers that add to one answer agree, a last layer that flips agrees with none."""
    restart()
    steps = torch.rand(32, 12, 1).cumsum(1)
    direction = torch.randn(32, 1, 4)
    steady = float(agreement(steps * direction).agreement.mean())
    flips = steps * direction
    flips[:, -1] = -flips[:, -1] * 3 + torch.randn(32, 4)
    low = float(agreement(flips).agreement.mean())
    answers = torch.randint(3, (200, 7))
    votes = [weighted_vote(row, [1.0] * 7) for row in answers.tolist()]
    plain = [max(dict.fromkeys(row), key=row.count) for row in answers.tolist()]
    model, ids = demo()
    n = ids.shape[1]
    spans = {"context": slice(0, 10), "question": slice(10, 18), "rationale": slice(18, 24),
             "query": slice(24, n)}  # fmt: skip
    probe = SpanShare("context")
    probe.show(Reading({}, spans=spans))
    with attach(model, probe, check=False), torch.no_grad():
        model(ids)
    shares = probe.told().details["shares"]
    total = [sum(x[site] for x in shares.values()) for site in shares["context"]]
    off = max(float((x - 1).abs().max()) for x in total)
    yield claim("If every layer adds", "IC", steady).equals(1.0, "1")
    yield claim("random final flip", "IC", low).below(
        0.2,
        "near 0",
        because=(
            "of two answers chance agrees in half, of flipped ones in none; noise lets a fifth pass"
        ),
    )
    yield claim("Equal ICs reproduce", "200 votes of 7 are the majority's", votes == plain).equals(
        True, "majority voting"
    )
    yield claim("Attention masses", "largest distance of sums from 1", off).within(
        1e-5, "1", because=FLOAT64
    )
