"""Heads whose focus an attack takes are chosen, and tell prompts apart; one row is enough."""

from __future__ import annotations

from itertools import pairwise

import torch

from regard.models.weights import closed_weights
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.copier_models import looked
from regard.papers.shared.measure import gap
from regard.papers.shared.random_calls import PLACE, random
from regard.probes.prompt_parts import Focus, focus_score, important_heads
from regard.probes.reading import Reading
from regard.probes.scores import Scores


@check("attention_tracker", beyond="real prompts of large models under attack")
def tracker() -> Claims:
    """Heads whose focus an attack takes are chosen, and tell prompts apart; one row is enough."""

    def prompts(attacked: bool) -> list[Scores]:
        made = []
        for _ in range(30):
            mass = 0.4 + 0.15 * torch.rand(16)
            mass[[3, 11]] = (0.1 if attacked else 0.6) + 0.02 * torch.randn(2)
            made.append(Scores("focus", "", {PLACE: mass.clamp(0, 1)}))
        return made

    normal, attacked = prompts(False), prompts(True)
    heads = important_heads(normal, attacked)
    found = (heads.values[PLACE] > 0).nonzero().flatten().tolist()
    counts = [
        int((important_heads(normal, attacked, k=k).values[PLACE] > 0).sum())
        for k in (0.5, 1.0, 2.0, 4.0, 8.0)
    ]
    new, injected = prompts(False), prompts(True)
    good, bad = ([focus_score(x, heads) for x in many] for many in (new, injected))
    area = sum(a > b for a in good for b in bad) / (len(good) * len(bad))
    call = random()
    reading = Reading({}, spans={"instruction": slice(1, 6), "data": slice(6, 20)})
    focus = looked(Focus(definition="mass"), call, reading)
    whole = closed_weights(call, "check")[0, :, -1, 1:6].sum(-1)
    difference = gap(focus, whole)
    shares = looked(Focus(), call, reading)
    yield claim("Synthetic maps", "heads that are chosen", str(found)).equals(
        "[3, 11]", "the planted heads, and they alone"
    )
    yield claim("Synthetic maps", "area under the curve on new prompts", area).equals(1.0, "1")
    yield claim(
        "raising k never adds",
        "times that a larger k added heads",
        sum(b > a for a, b in pairwise(counts)),
    ).equals(0, "never")
    yield claim("FS lies in [0,1]", "least score", float(shares.min())).at_least(0, "0")
    yield claim("FS lies in [0,1]", "largest score", float(shares.max())).at_most(
        1, "1", because="a share"
    )
    yield claim("last-row computation", "difference", difference).within(
        1e-6, "row of the full map", because=FLOAT32
    )
