"""A planted liking is told apart from quality, and shares swap as answers do."""

from __future__ import annotations

import torch

from regard.core.rule import Rule
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.random_calls import random
from regard.probes.prompt_parts import self_preference, spans_mass

SCORES = 10_000


@check("dbg_self_preference", beyond="language models as judges")
def preference() -> Claims:
    """A planted liking is told apart from quality, and shares swap as answers do."""
    quality = torch.rand(SCORES, 2, dtype=torch.float64)
    bias = 0.15
    judged = quality[:, 0] + bias
    found = self_preference(judged, quality[:, 0])
    better = quality.clone()
    better[:, 0] += 0.3
    same = self_preference(better[:, 0] + bias, better[:, 0])
    noisy = self_preference(judged, quality[:, 0] + 0.2 * torch.randn(SCORES, dtype=torch.float64))
    plain = [float((x[:, 0] + bias - x[:, 1]).mean()) for x in (quality, better)]
    call = random(b=1)
    flat = call.replace(rule=Rule())  # no positions: keys are a set
    a, b, last = slice(4, 10), slice(10, 18), slice(23, 24)
    spans = {"a": a, "b": b, "rest 1": slice(0, 4), "rest 2": slice(18, 24)}
    shares = spans_mass(flat, spans, last)
    total = float((sum(shares.values()) - 1).abs().max())
    order = torch.cat([torch.arange(4), torch.arange(10, 18), torch.arange(4, 10),
                       torch.arange(18, 24)])  # fmt: skip
    swapped = flat.replace(k=flat.k[:, :, order], v=flat.v[:, :, order])
    back = spans_mass(swapped, {"b": slice(4, 12), "a": slice(12, 18)}, last)
    swap = max(gap(back[x], shares[x]) for x in "ab")
    yield claim("Synthetic judge", "DBG", found).within(
        1e-6, "the planted bias", value=bias, because=FLOAT64
    )
    yield claim("Synthetic judge", "DBG, better answers of its own", same).within(
        1e-6, "the planted bias", value=bias, because=FLOAT64
    )
    yield claim("Synthetic judge", "move of own minus other", plain[1] - plain[0]).within(
        1e-6, "the planted quality", value=0.3, because=FLOAT64
    )
    yield claim("Synthetic judge", f"DBG against a noisy gold judge of {SCORES}", noisy).within(
        0.01,
        "the planted bias",
        value=bias,
        because="noise of 0.2 on 10,000 scores: five standard errors",
    )
    yield claim("Span shares plus", "distance of sums from 1", total).within(
        1e-6, "1", because=FLOAT64
    )
    yield claim("swapping answer order", "difference of swapped shares", swap).within(
        1e-6, "the other order", because=FLOAT64
    )
