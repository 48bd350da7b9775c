"""Uniform attention prefers nothing, a partition sums to 1, and nearness counts by ALiBi."""

from __future__ import annotations

from itertools import pairwise

from regard.core.rule import Rule
from regard.core.score import Alibi, Dot
from regard.core.support import Causal, Support, Where
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.copier_models import looked
from regard.papers.shared.random_calls import even, random
from regard.probes.prompt_parts import SpanShare
from regard.probes.reading import Reading


def _columns(start: int, stop: int) -> Support:
    """All pairs with keys in a range."""
    return Where(lambda b, h, i, j: (j >= start) & (j < stop) & (i >= 0))


@check("strategy_relevant_attention", beyond="dialogues, strategy classifiers, and tuning on them")
def strategy() -> Claims:
    """Uniform attention prefers nothing, a partition sums to 1, and nearness counts by ALiBi."""
    spans = {"system": slice(0, 5), "history": slice(5, 16), "strategy": slice(16, 20),
             "answer": slice(20, 24)}  # fmt: skip
    reading = Reading({}, spans=spans)
    flat = looked(SpanShare("strategy", definition="relative"), even(random()), reading)
    probe = SpanShare("strategy")
    looked(probe, random(), Reading({}, spans={**spans, "rest": slice(20, 24)}))
    shares = probe.told().details["shares"].values()
    total = sum(next(iter(x.values())) for x in shares)
    partition = float((total - 1).abs().max())
    near = Rule(Causal(), Dot() >> Alibi.for_heads(4))
    call = even(random(40, near))
    moved = []
    for start in (2, 8, 14, 20, 26, 32):
        there = {"strategy": slice(start, start + 4), "answer": slice(36, 40)}
        moved.append(float(looked(SpanShare("strategy"), call, Reading({}, spans=there)).mean()))
    hidden = random(24, Rule(Causal() & ~_columns(16, 20)))
    gone = float(looked(SpanShare("strategy"), hidden, reading).max())
    yield claim(
        "Uniform attention gives", "distance of relative SRA from 1", float((flat - 1).abs().max())
    ).within(1e-6, "1", because=FLOAT32)
    yield claim("masking S gives 0", "SRA", gone).equals(0.0, "0")
    yield claim("SRA over a partition", "distance of sums from 1", partition).within(
        1e-6, "1", because=FLOAT32
    )
    for place, (a, b) in enumerate(pairwise(moved), 1):
        yield claim("moving S nearer", f"SRA after step {place}", b).above(a, "a step farther")
