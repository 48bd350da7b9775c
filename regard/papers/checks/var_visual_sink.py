"""Visual sinks give weight to the rest of the image, in heads that look at it alone."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.prompt import Prompt
from regard.controls.steering import Steering
from regard.controls.visual_sinks import MassiveTokens, VisualSinks
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.run.runner import run

N, IMAGE, SINK, CHANNEL = 20, range(3, 12), 6, 5


def _weights(call: Call) -> Tensor:
    found = run(call, ("weights",)).weights
    assert found is not None
    return found


@check("var_visual_sink", beyond="LLaVA models on questions and hallucination")
@torch.no_grad()
def visual_sinks() -> Claims:
    """Visual sinks give weight to the rest of the image, in heads that look at it alone."""
    q, k, v = (torch.randn(1, h, N, 8, dtype=torch.float64) for h in (8, 4, 4))
    call = Call.of(2 * q, k, v, Rule(Causal()))
    hidden = torch.randn(1, N, 512)
    hidden[0, SINK, CHANNEL] = 1e4
    images = torch.zeros(1, N, dtype=torch.bool)
    images[0, list(IMAGE)] = True
    at = EditContext(call, Prompt(torch.zeros(1, N).long(), images=images), hidden=hidden)
    control = VisualSinks((CHANNEL,), strength=0.4)
    edited = control.edits()[0].before(at)
    old, new = _weights(call), _weights(edited)
    rest = [j for j in IMAGE if j != SINK]
    mass, drawn = old[..., list(IMAGE)].sum(-1), old[..., SINK]
    behind = torch.arange(N) > IMAGE[-1]
    acts = (mass >= control.least) & (drawn <= control.most * mass) & behind
    before, after = (x[acts][:, rest] / x[acts][:, rest].sum(-1, keepdim=True) for x in (old, new))
    moved = gap(new[acts][:, SINK], 0.6 * old[acts][:, SINK])
    model = llama(3)
    ids = torch.randint(3, 60, (1, N))
    # A Module types its parts as Tensor or Module.
    width = model.config.hidden_size  # type: ignore[union-attr]
    plain = model(ids).logits
    still = VisualSinks((0,), strength=0.0, above=1.0)
    prompt = Prompt(ids, images=images)
    with attach(model, Steering(still, prompt=prompt), check=False):
        same = model(ids).logits
    place, channel = int(torch.randint(0, N, ())), int(torch.randint(0, width, ()))
    # A Module types its parts as Tensor or Module.
    model.model.embed_tokens.weight[61] = model.model.embed_tokens.weight[4]  # type: ignore
    # A Module types its parts as Tensor or Module.
    model.model.embed_tokens.weight[61, channel] = 1e3  # type: ignore
    ids = ids.clone()
    ids[0, place] = 61
    stage = Steering(VisualSinks((channel,), above=0.9 * width**0.5), prompt=prompt)
    with attach(model, stage, check=False):
        model(ids)
    found = [
        next(x for y, x in kept.items() if isinstance(y, MassiveTokens)).nonzero()[:, 2].tolist()
        for site, kept in prompt.memory.items()
        if getattr(site, "layer", None) == 0
    ]
    yield claim("Each edited row", "distance of a row's sum", gap(new.sum(-1), old.sum(-1))).within(
        1e-6, "1", because=CATALOGUE
    )
    yield claim("Each edited row", "difference of the sink's weight", moved).within(
        1e-12, "0.6 of it", because=FLOAT64
    )
    yield claim("p=1 leaves logits", "difference of logits", gap(same, plain)).equals(
        0.0, "the same"
    )
    yield claim("non-sink image weights", "difference of shares", gap(before, after)).within(
        1e-12, "shares before", because=FLOAT64
    )
    yield claim(
        "heads failing either", "difference of weights", gap(new[~acts], old[~acts])
    ).within(1e-12, "the unchanged weights", because=FLOAT64)
    yield claim("Planting a massive activation", "sinks of layer 0", str(found)).equals(
        str([[place]]), "the planted token"
    )
