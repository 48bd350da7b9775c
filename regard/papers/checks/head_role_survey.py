"""The probes of roles name the wired heads and no other; patching and averaging do as said."""

from __future__ import annotations

import torch

from regard.circuits.mlp_patching import mlps_of, patched_mlps, recorded_mlps
from regard.circuits.patching import Patched, logit_difference, recorded
from regard.models.attach import attach, hook_of
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.wired import CLEAN, WiredWithMlps
from regard.probes.importance import Averaged, means_of
from regard.probes.reading import Reading
from regard.probes.roles import DuplicateToken, Induction, PreviousToken


@check(
    "head_role_survey",
    beyond="roles of large models that the survey collects",
)
def roles() -> Claims:
    """The probes of roles name the wired heads and no other; patching and averaging do as said."""
    model = WiredWithMlps()
    ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    reading = Reading({"input_ids": ids}, period=4)
    probes = [PreviousToken(), Induction(), DuplicateToken()]
    for probe in probes:
        probe.show(reading)
    with attach(model, probes, check=False), torch.no_grad():
        model(ids)
    # because: planted heads have 1
    named = {p.name: [h.name for h in p.told().heads() if h.value > 0.5] for p in probes}
    metric = logit_difference(1, 2)
    told = CLEAN.clone()
    told[0, 2], told[0, 4] = 2, 1
    record, clean = recorded(model, CLEAN, metric)
    _, corrupt = recorded(model, told, metric)
    last = hook_of(model)[1][1]
    own = mlps_of(model)[1]
    mlp = patched_mlps({own: recorded_mlps(model, CLEAN)[own]})
    heads = attach(model, Patched(record.parts, {last: range(2)}), check=False)
    with heads, mlp, torch.no_grad():
        recovery = (float(metric(model(told))) - corrupt) / (clean - corrupt)
    unused = Averaged([(last, 1)], means_of(model, CLEAN))
    with attach(model, unused, check=False), torch.no_grad():
        change = abs(float(metric(model(CLEAN))) - clean)
    yield claim("On a hand-built 2-layer", "heads that the probes name", str(named)).equals(
        "{'previous_token': ['L0H1'], 'induction': ['L1H0'], 'duplicate_token': []}",
        "the planted heads alone",
    )
    yield claim("patching all heads", "recovery", recovery).within(
        1e-5, "1", value=1, because=FLOAT32
    )
    yield claim("mean ablation", "change without an unused head", change).within(
        1e-6, "none", because=FLOAT32
    )
