"""Planted heads have their lags; without induction heads serial recall is gone."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.models.attach import attach
from regard.models.site import Site
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import seed
from regard.papers.shared.copier_models import copier, pointing
from regard.papers.shared.measure import gap
from regard.papers.shared.sentences import profile_of
from regard.probes.importance import taken_out
from regard.probes.lags import said_by_lag, study_list
from regard.probes.reading import Reading
from regard.probes.roles import Induction


@check(
    "attention_lag_crp",
    long=True,
)
def episodes() -> Claims:
    """Planted heads have their lags; without induction heads serial recall is gone."""
    items = 16
    planted = Reading({"input_ids": torch.arange(items).repeat(1, 2)}, period=items)
    place = torch.arange(2 * items)
    keys = torch.stack([
        torch.where(place < items, place, place - items + lag) for lag in (1, 0)
    ])  # fmt: skip
    found = profile_of(pointing(keys), planted)
    flat = profile_of(Call.of(*(torch.zeros(1, 1, 2 * items, 4),) * 3, Rule(Causal())), planted)
    peaks = float(torch.minimum(found[0, 6], found[1, 5]))
    uniform = gap(flat, torch.full_like(flat, 1 / 11))

    # Twelve heads, then one: the second layer has one head that can do induction, and one alone.
    model, _ = copier(2, heads=(12, 1))
    reading = study_list(40, items, rows=64, seed=seed())
    probe = Induction()
    probe.show(reading)
    assert reading.tokens is not None
    with attach(model, [probe], check=False), torch.no_grad():
        model(reading.tokens)
    ranked = probe.told().heads()
    best = max(ranked, key=lambda head: head.value)

    def serial(out: list[tuple[Site, int]]) -> float:
        with attach(model, taken_out(out), check=False), torch.no_grad():
            logits = model(reading.tokens)
        # Not None: asserted above.
        return float(said_by_lag(logits, reading.tokens, items)[6])  # type: ignore[arg-type]

    whole, broken = serial([]), serial([(best.site, best.head)])
    others = [head for head in ranked if (head.site, head.head) != (best.site, best.head)]
    moved = [abs(serial([(head.site, head.head)]) - whole) / whole for head in others]
    yield claim(
        "Planted induction head", "least weight of planted heads at their lag", peaks
    ).within(1e-6, "all", value=1, because=FLOAT32)
    yield claim(
        "Planted induction head", "distance of a uniform head from a flat line", uniform
    ).within(1e-6, "1/11", because=FLOAT32)
    yield claim("In a 2-layer toy", "p(lag +1) with all heads", whole).above(
        0.9, "solved", because="or there would be nothing to drop"
    )
    yield claim("In a 2-layer toy", "p(lag +1) without the induction head", broken).at_most(
        1 / items, "chance, one of 16 items"
    )
    yield claim(
        "In a 2-layer toy",
        "change without a random other head, mean of all",
        sum(moved) / len(moved),
    ).below(0.1, "the catalogue's 10%", because=CATALOGUE)
