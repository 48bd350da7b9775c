"""Raised scores raise mass on chosen tokens in the newest row alone; streams are disjoint."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.edit import apply
from regard.controls.prompt import Prompt
from regard.controls.steering import Steering
from regard.controls.token_emphasis import TokenEmphasis, streams
from regard.controls.token_sets import TokenPositions
from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.shared.measure import gap
from regard.papers.shared.random_calls import random
from regard.papers.shared.small_llama import llama
from regard.run.runner import run

LOCAL, SALIENT = (3, 4, 9), (6, 12)


def _control(strength: float) -> TokenEmphasis:
    return TokenEmphasis(TokenPositions(LOCAL), TokenPositions(SALIENT), strength=strength)


@check("dual_stream_token_emphasis", beyond="MSCOCO captions, and heads weighed by what they see")
@torch.no_grad()
def dual_stream() -> Claims:
    """Raised scores raise mass on chosen tokens in the newest row alone; streams are disjoint."""
    call = random()
    at = EditContext(call, Prompt(torch.zeros(1, call.n).long()))

    def weights(strength: float) -> Tensor:
        found = run(apply(_control(strength).edits(), at)[0], ("weights",)).weights
        assert found is not None
        return found

    found = {a: weights(a) for a in (0.0, 0.2, 0.7, 1.5)}
    masses = [x[0, :, -1, [*LOCAL, *SALIENT]].sum(-1) for x in found.values()]
    falls = sum(int((b <= a).sum()) for a, b in pairwise(masses))
    others = gap(found[0.7][:, :, :-1], found[0.0][:, :, :-1])
    model, ids = llama(2), torch.randint(3, 60, (1, 16))
    with attach(model, Steering(_control(0.0)), check=False):
        same = model(ids).logits
    early, late = torch.rand(4, 8, 576) ** 3, torch.rand(4, 8, 576)
    late[:, :, torch.randint(0, 576, (20,))] += 3
    local, salient = streams(early, late)
    yield claim("alpha=beta=0", "difference of logits", gap(same, model(ids).logits)).equals(
        0.0, "the base model"
    )
    yield claim("for any logits", "heads and steps where the mass did not rise", falls).equals(
        0, "none"
    )
    yield claim("only the last row changes", "difference in other rows", others).equals(0.0, "none")
    yield claim("T and B are disjoint", "patches in both", int((local & salient).sum())).equals(
        0, "none"
    )
    yield claim("T and B are disjoint", "largest |T|", int(local.sum(1).max())).at_most(
        576, "patches", times=0.25, because="the sentence's 0.25"
    )
    yield claim("T and B are disjoint", "least |B|", int(salient.sum(1).min())).above(
        0, "none: the planted outliers are there"
    )
