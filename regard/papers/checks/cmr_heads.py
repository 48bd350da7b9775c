"""Made profiles are fitted back; heads that go forward fit, heads that go back do not."""

from __future__ import annotations

import torch

from regard.analysis.context_maintenance import fit_recall, recalled
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.copier_models import pointing
from regard.papers.shared.measure import gap
from regard.papers.shared.sentences import profile_of
from regard.probes.reading import Reading


@check("cmr_heads", beyond="GPT-2 and Pythia by layer and checkpoint")
def retrieved() -> Claims:
    """Made profiles are fitted back; heads that go forward fit, heads that go back do not."""
    wrong, far = [], []
    low, high = torch.tensor([[0.4, 0.6, 0.1, 6.0], [0.7, 0.9, 0.5, 12.0]]).double()
    for _ in range(3):
        truth = low + (high - low) * torch.rand(4).double()
        found = fit_recall(recalled(*truth, items=30, reach=5), items=30)
        back = torch.tensor([found.beta_enc, found.beta_rec, found.gamma, found.sharpness])
        wrong.append(float(((back - truth) / truth).abs().max()))
        far.append(found.distance)
    n, items = 60, 30
    reading = Reading({"input_ids": torch.arange(items).repeat(1, 2)}, period=items)
    place = torch.arange(n)
    heads = {}
    for lag in (1, -1):
        keys = torch.where(place < items, place, (place - items + lag).clamp(min=0))
        profile = profile_of(pointing(keys[None]), reading)[0]
        heads[lag] = fit_recall(profile, items=items).distance
    one = torch.tensor(1.0).double()
    ahead = recalled(0.7 * one, one, 0 * one, 8 * one, items=40, reach=5)
    both = recalled(0.7 * one, one, one, 8 * one, items=60, reach=5)
    uneven = gap(both, both.flip(0)) / float(both.max())
    behind = float(ahead[:6].max() / ahead[:6].min()) - 1
    yield claim("Profiles generated", "largest distance", max(far)).below(
        1e-3, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("Profiles generated", "largest relative error of parameters", max(wrong)).below(
        0.05, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("an ideal induction head", "distance of a head at -1", heads[-1]).above(
        heads[1], "a head at +1", times=10, because=CATALOGUE
    )
    yield claim("Simulator: gamma=0", "lag of the peak, gamma = 0", int(ahead.argmax()) - 5).equals(
        1, "+1"
    )
    yield claim("Simulator: gamma=0", "spread of lags up to 0, gamma = 0", behind).within(
        1e-6, "none: as by chance", because=FLOAT64
    )
    yield claim("Simulator: gamma=0", "unevenness of lags, gamma = 1", uneven).within(
        0.02, "symmetric", because="a list of 60 has ends: a fiftieth of the peak"
    )
