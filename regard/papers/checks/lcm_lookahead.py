"""Masked references and copies change nothing, their order neither; more weight, more likeness."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from regard.controls.diffusion import ReferenceAttention
from regard.controls.steering import Steering
from regard.controls.token_sets import TokenMask
from regard.core.errors import need
from regard.models.attach import attach
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.picture_calls import TOKENS, alike, pictures, with_edits

ODDS = (0.0, 0.5, 1.0, 2.0, 8.0)


def _likeness(odds: tuple[float, ...]) -> list[float]:
    """Likeness of a toy U-Net's features to the reference's, as odds of its keys are multiplied.

    Features are what the self-attentions return, mean over tokens; the cosine is the mean over 8
    pictures and all layers. Reference and pictures are noise with prompts of their own.
    """
    net = need("diffusers", "diffusers", "has the model").UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
        attention_head_dim=8,
    ).eval()  # fmt: skip
    seen: list[Tensor] = []
    for name, module in net.named_modules():
        if name.endswith("attn1"):
            module.register_forward_hook(lambda _, __, out: seen.append(out.mean(1)))
    latents, text, found = torch.randn(9, 4, 8, 8), torch.randn(9, 5, 16), []
    for weight in odds:
        seen.clear()
        with attach(net, Steering(ReferenceAttention(strength=weight)), check=False):
            net(latents, torch.tensor(500), text)
        found.append(sum(float(cosine_similarity(x[1:], x[:1]).mean()) for x in seen) / len(seen))
    return found


@check(
    "lcm_lookahead",
    beyond="the encoder, and the loss through a preview in one step: both are trained",
)
@torch.no_grad()
def lcm_lookahead() -> Claims:
    """Masked references and copies change nothing; more weight, more likeness."""
    call, same = pictures(2), alike(pictures(2))
    nothing = TokenMask(torch.arange(TOKENS + 1) == TOKENS)
    masked = with_edits(call, ReferenceAttention(mask=nothing).edits())[0]
    copied = with_edits(same, ReferenceAttention().edits())[0]
    three = pictures(3)
    order = torch.tensor([1, 0, 2])
    turned = three.replace(**{n: getattr(three, n)[order] for n in ("q", "k", "v")})
    a, b = (with_edits(x, ReferenceAttention((0, 1)).edits())[0][2] for x in (three, turned))
    # A log-bias of ln 2 by the equation, added to the scores of the reference.
    pair = [call.q[1] @ call.k[i].mT * call.d**-0.5 for i in (1, 0)]
    pair[1] = pair[1] + math.log(2)
    written = torch.cat(pair, -1).softmax(-1) @ torch.cat((call.v[1], call.v[0]), -2)
    biased = with_edits(call, ReferenceAttention(strength=2.0).edits())[0][1]
    likeness = _likeness(ODDS)
    yield claim("Reference keys masked", "difference", gap(masked, with_edits(call, ())[0])).equals(
        0.0, "base output"
    )
    yield claim("identical to K_gen", "difference", gap(copied, with_edits(same, ())[0])).within(
        1e-12, "the output", because=FLOAT64
    )
    yield claim("swapping reference order", "difference", gap(a, b)).within(
        1e-12, "the output in the other order", because=FLOAT64
    )
    yield claim(
        "with a toy U-Net", "difference at a log-bias of ln 2", gap(biased, written)
    ).within(1e-12, "softmax with it added to the reference's scores", because=FLOAT64)
    yield claim(
        "with a toy U-Net", "log-biases at which likeness did not rise",
        sum(y <= x for x, y in pairwise(likeness)),
    ).equals(0, "none of 5")  # fmt: skip
    yield claim("with a toy U-Net", "likeness at a log-bias of ln 8", likeness[-1]).above(
        likeness[0], "without the reference"
    )
