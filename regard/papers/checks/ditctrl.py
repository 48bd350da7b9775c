"""The same again stays so, masks of ones are no masks, joints are smooth; sharing makes alike."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from regard.controls.diffusion import DiTCtrl, blend_segments
from regard.controls.image_tokens import Region
from regard.controls.steering import Steering
from regard.models.attach import attach
from regard.models.shape_painter import load_painter
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import TOKENS, alike, pictures, with_edits

COLORS, SHAPES = ("red", "green", "blue", "yellow"), ("square", "ring", "cross")
# Pairs of segments that a mean is of: 24 left a spread of a third of what sharing adds.
PAIRS = 64
WHOLE = Region(box=(0, 0, 1, 1))


def _segments(many: int) -> tuple[float, float]:
    """Mean similarity of two segments that the painter which ships predicts: without, and with.

    The painter is a small MM-DiT. Segments have prompts and noise of their own.
    """
    painter, found = load_painter(), []
    net = painter.transformer
    for _ in range(many):
        prompts = [
            " and ".join(f"{COLORS[int(torch.randint(4, ()))]} {SHAPES[int(torch.randint(3, ()))]}"
                         for _ in range(2)) for _ in range(2)
        ]  # fmt: skip
        given = {
            "hidden_states": torch.randn(2, 3, 16, 16), "timestep": torch.full((2,), 700.0),
            "encoder_hidden_states": painter.words(painter.tokenizer.padded(prompts)),
            "pooled_projections": torch.zeros(2, net.config.pooled_projection_dim),
        }  # fmt: skip
        apart = net(**given).sample
        with attach(net, Steering(DiTCtrl()), check=False):
            shared = net(**given).sample
        found.append([float(cosine_similarity(*x.flatten(1), 0)) for x in (apart, shared)])
    without, with_sharing = torch.tensor(found).mean(0).tolist()
    return without, with_sharing


@check(
    "ditctrl",
    beyond="transitions of videos of CogVideoX, and masks that are found in maps",
)
@torch.no_grad()
def ditctrl() -> Claims:
    """The same again stays so, masks of ones are no masks, joints are smooth."""
    same = with_edits(alike(pictures(2, "joint")), DiTCtrl().edits())[0]
    call = pictures(2, "joint")
    shared = with_edits(call, DiTCtrl().edits())[0]
    masked = with_edits(call, DiTCtrl(mask=WHOLE, target=WHOLE).edits())[0]
    likeness = [0.0, 0.0]
    for _ in range(PAIRS):
        drawn = pictures(2, "joint")
        for i, edits in enumerate(((), DiTCtrl().edits())):
            features = with_edits(drawn, edits)[0][:, :, :TOKENS].mean(2).flatten(1)
            likeness[i] += float(cosine_similarity(*features, 0)) / PAIRS
    constant = torch.full((4, 13, 2, 3), float(torch.randn(())))
    joined = blend_segments([constant] * 3, 6)
    steps = blend_segments([torch.zeros(1, 13, 1, 1), torch.ones(1, 13, 1, 1)], 6).flatten()
    yield claim("Identical prompts and noise", "difference", gap(same[0], same[1])).within(
        1e-12, "identical outputs", because=FLOAT64
    )
    yield claim("masks all-ones equal", "difference", gap(shared, masked)).within(
        1e-12, "unmasked sharing", because=FLOAT64
    )
    yield claim("triangular-weight average", "largest difference of a constant",
                gap(joined, constant[:1, :1].expand_as(joined))).within(
        1e-6, "the constant", because=FLOAT32
    )  # fmt: skip
    largest = float(steps.diff().max())
    yield claim("triangular-weight average", "largest step over 6 frames", largest).below(
        0.5, "half of the jump", because="a ramp over six frames steps by a fifth"
    )
    yield claim(
        "in a toy MM-DiT", "similarity of a layer's features, mean of pairs", likeness[1]
    ).above(likeness[0], "that without sharing")
    without, with_sharing = _segments(PAIRS)
    yield claim(
        "in a toy MM-DiT", "similarity of what a small MM-DiT predicts, mean of pairs", with_sharing
    ).above(without, "that without sharing")
