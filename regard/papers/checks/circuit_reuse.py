"""Path patching finds the two wired heads, and nothing where nothing differs."""

from __future__ import annotations

import torch

from regard.circuits.mlp_patching import patched_mlps, recorded_mlps
from regard.circuits.patching import Patched, in_circuit, logit_difference, path_patching, recorded
from regard.models.attach import attach, hook_of
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.wired import CLEAN, WiredWithMlps


@check(
    "circuit_reuse",
    beyond="indirect object identification and colored objects in GPT-2 medium",
)
def paths() -> Claims:
    """Path patching finds the two wired heads, and nothing where nothing differs."""
    model, metric = WiredWithMlps(), logit_difference(1, 2)
    sites = hook_of(model)[1]
    record, clean = recorded(model, CLEAN, metric)
    same = Patched(record.parts, {site: range(2) for site in sites})
    with attach(model, same, check=False), torch.no_grad():
        unchanged = abs(float(metric(model(CLEAN))) - clean)
    told = CLEAN.clone()
    told[0, 2], told[0, 4] = 2, 1  # another word follows
    other, _ = recorded(model, told, metric)
    every = Patched(other.parts, {site: range(2) for site in sites})
    logits, mlps = model(told).detach(), recorded_mlps(model, told)
    still = recorded_mlps(model, CLEAN)
    with attach(model, every, check=False), torch.no_grad():
        # The last token is the same in both; all that differs comes by heads and MLPs.
        with patched_mlps(mlps):
            reproduced = gap(model(CLEAN)[:, -1], logits[:, -1])
        with patched_mlps(still):
            heads_alone = gap(model(CLEAN)[:, -1], logits[:, -1])
    direct = path_patching(model, CLEAN, told, metric)
    movers = in_circuit(direct.scores, share=0.25)
    moved = torch.tensor([[0, 4, 1, 3, 2, 5, 0, 3]])  # the token before the answer is another
    keys = path_patching(model, CLEAN, moved, metric, receivers=movers, part="k")
    feeders = in_circuit(keys.scores, share=0.25)
    found = {*movers, *feeders}
    wanted = {(sites[1], 0), (sites[0], 1)}
    rest = max(
        abs(h.value) for e in (direct, keys) for h in e.scores.heads()
        if (h.site, h.head) not in wanted
    )  # fmt: skip
    yield claim("Patching with identical", "change of the metric", unchanged).equals(0.0, "none")
    yield claim("patching all heads", "difference of logits, heads and MLPs", reproduced).within(
        1e-5, "the corrupted run", because=CATALOGUE
    )
    yield claim("patching all heads", "the same, MLPs held at the clean run", heads_alone).above(
        1e-5, "what counts as equal", because="or the MLPs would have nothing to say"
    )
    yield claim(
        "Handmade two-layer",
        "heads that path patching returns",
        str(sorted(f"L{s.layer}H{h}" for s, h in found)),
    ).equals("['L0H1', 'L1H0']", "the two wired heads")
    yield claim("Handmade two-layer", "largest effect of another head", rest).within(
        1e-5, "none", because=FLOAT32
    )
