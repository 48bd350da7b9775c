"""Subjects put nothing on each other; a latent is led until words are in their regions."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion import BoundedAttention, InsideRegions, Subject, TextPositions
from regard.controls.diffusion.map_losses import TextMaps
from regard.controls.edit import apply
from regard.controls.image_tokens import Region
from regard.controls.prompt import Prompt
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import GRID, LEFT, TOKENS, pictures, with_edits
from regard.run.runner import run

PAIR = (
    Subject(TextPositions((1, 2)), Region(box=(0, 0, 1, 0.5))),
    Subject(TextPositions((3,)), Region(box=(0, 0.5, 1, 1))),
)
STEPS = 50


def _led() -> tuple[float, float, float]:
    """Lead 24 queries by their maps of 3 words: inside-mass before, after, and the loss after."""
    keys = 3 * torch.randn(3, 4)
    sets = tuple(torch.eye(3, dtype=torch.bool)[i : i + 1] for i in (1, 2))
    places = (LEFT[None], ~LEFT[None])
    latent = 0.1 * torch.randn(1, TOKENS, 4)

    def maps(x: Tensor) -> TextMaps:
        return TextMaps((x @ keys.T / 2).softmax(-1), GRID, sets, places)

    def inside(x: Tensor) -> float:
        found = maps(x)
        pairs = zip(found.of_words(found.maps), places, strict=True)
        return min(float((w * r).sum() / w.sum()) for w, r in pairs)

    before = inside(latent)
    for _ in range(STEPS):
        latent = latent.requires_grad_()
        (slope,) = torch.autograd.grad(InsideRegions().loss(maps(latent)).sum(), latent)
        latent = (latent - 8 * slope).detach()
    return before, inside(latent), float(InsideRegions().loss(maps(latent)))


@check("bounded_attention", beyond="pictures of several animals, and boxes refined by clusters")
def bounded_attention() -> Claims:
    """Subjects put nothing on each other; a latent is led until words are in their regions."""
    whole = BoundedAttention((Subject(TextPositions((1, 2)), Region(box=(0, 0, 1, 1))),))
    masses, sums, alone = [], [], []
    for kind in ("self", "cross", "joint"):
        call = pictures(2, kind)
        weights = with_edits(call, BoundedAttention(PAIR).edits())[1]
        text = 0 if kind == "cross" else TOKENS
        for inside, words in ((LEFT, [3]), (~LEFT, [1, 2])):
            rows = weights[:, :, :TOKENS][:, :, inside]
            if kind != "cross":
                masses.append(float(rows[..., :TOKENS][..., ~inside].max()))
            if kind != "self":
                masses.append(float(rows[..., [text + w for w in words]].max()))
        sums.append(gap(weights.sum(-1), torch.ones((), dtype=weights.dtype)))
        alone.append(gap(with_edits(call, whole.edits())[0], with_edits(call, ())[0]))
    call = pictures(1)
    v = call.v.requires_grad_()
    new, _ = apply(BoundedAttention(PAIR).edits(), EditContext(call.replace(v=v), Prompt()))
    (slope,) = torch.autograd.grad(run(new).out[:, :, LEFT].sum(), v)
    maps = torch.zeros(1, TOKENS, 1)
    maps[:, LEFT] = torch.rand(1, int(LEFT.sum()), 1)
    sets = (torch.ones(1, 1, dtype=torch.bool),)
    kept = float(InsideRegions().loss(TextMaps(maps, GRID, sets, (LEFT[None],))))
    leaks = float(InsideRegions().loss(TextMaps(maps + 0.01, GRID, sets, (LEFT[None],))))
    before, after, _ = _led()
    yield claim("One subject with a full-image box", "largest difference", max(alone)).equals(
        0.0, "the model's attention"
    )
    yield claim("masked rows sum to 1", "mass on the other subject", max(masses)).equals(0.0, "0")
    yield claim("masked rows sum to 1", "largest deviation of a sum", max(sums)).within(
        1e-12, "1", because=FLOAT64
    )
    yield claim("50 gradient steps on a toy latent", "loss of maps inside", kept).equals(0.0, "0")
    yield claim("50 gradient steps on a toy latent", "loss of maps that leak", leaks).above(0, "0")
    yield claim("50 gradient steps on a toy latent", "least inside-mass", after).above(
        0.9, "0.9", because=CATALOGUE
    )
    yield claim("50 gradient steps on a toy latent", "inside-mass before", before).below(
        after, "that after"
    )
    yield claim("zero gradient with respect to B", "largest", float(slope[:, :, ~LEFT].abs().max())
                ).equals(0.0, "zero")  # fmt: skip
