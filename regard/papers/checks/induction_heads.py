"""Two layers learn to copy what followed, by a head that can be found; one layer does not."""

from __future__ import annotations

import torch

from regard.layers.smeared import SmearedKeys
from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import seed
from regard.papers.shared.copier_models import copier, repeat_loss
from regard.papers.shared.wired import Wired
from regard.probes.base import Probe
from regard.probes.importance import taken_out
from regard.probes.reading import Reading
from regard.probes.roles import DuplicateToken, Induction, PreviousToken
from regard.probes.stimuli import repeated


@check(
    "induction_heads",
    long=True,
    beyond="the phase change of large models",
)
def induction() -> Claims:
    """Two layers learn to copy what followed, by a head that can be found; one layer does not."""
    two, loss_two = copier(2)
    _, loss_one = copier(1)
    _, loss_smeared = copier(1, kind=SmearedKeys)
    reading = repeated(40, period=16, rows=64, seed=seed())
    probes: list[Probe] = [Induction(), PreviousToken(), DuplicateToken()]
    for probe in probes:
        probe.show(reading)
    assert reading.tokens is not None
    with attach(two, probes, check=False), torch.no_grad():
        two(reading.tokens)
    best = [probe.told().top(1)[0] for probe in probes[:2]]
    # because: chance is 1/16
    found = [(h.site, h.head) for h in probes[0].told().heads() if h.value > 0.3]
    gone = taken_out(found)
    with attach(two, gone, check=False):
        broken = repeat_loss(two)
    wired = Wired()
    # What comes first has no token before it, and is not shown again.
    ids = torch.tensor([[4, 0, 1, 2, 0, 1, 2]])
    wiring = Induction(definition="mask")
    wiring.show(Reading({"input_ids": ids}))
    with attach(wired, wiring, check=False), torch.no_grad():
        said = wired(ids)
    wired_score = wiring.told().top(1)[0].value
    wired_right = float((said[0, 4:-1].argmax(-1) == ids[0, 5:]).double().mean())
    yield claim("A hand-built 2-layer", "prefix matching of the wired head", wired_score).above(
        0.99, "about 1", because="softmax of finite weights leaves less than a hundredth"
    )
    yield claim("A hand-built 2-layer", "repeats predicted by the wired model", wired_right).equals(
        1.0, "all"
    )
    yield claim("A hand-built 2-layer", "loss on repeats, trained two layers", loss_two).below(
        0.5, "chance is 3.7 nats", because="solved but for the first tokens of a period"
    )
    yield claim("A hand-built 2-layer", "prefix matching of its best head", best[0].value).above(
        0.5, "most of its weight", because="half"
    )
    yield claim(
        "A hand-built 2-layer", "layer of the best previous-token head", best[1].site.layer
    ).below(best[0].site.layer, "layer of the induction head")
    yield claim("A hand-built 2-layer", "loss without the induction heads", broken).above(
        loss_two, "with them", times=3, because="what they carry is most of it"
    )
    yield claim("a 1-layer trained model", "loss on repeats, trained one layer", loss_one).above(
        2, "chance is 3.7 nats", because="near chance: over half of it; two layers are below 0.5"
    )
    yield claim(
        "a 1-layer trained model", "loss on repeats, one layer, smeared keys", loss_smeared
    ).below(0.5, "two layers' bound", because="solved but for the first tokens of a period")
