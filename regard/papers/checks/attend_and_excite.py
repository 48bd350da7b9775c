"""A neglected word is looked at after updates; without them latents are those of the sampler."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.controls.diffusion import NeglectedWord, attend_and_excite, guide_latents
from regard.controls.diffusion.map_losses import TextMaps
from regard.core.errors import need
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.shared.picture_calls import GRID, TOKENS

WORDS = [1, 2, 3, 4]
THRESHOLD = 0.5


def tiny_sd3() -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """A random SD3 with sharp attention, a latent, and the other arguments."""
    diffusers = need("diffusers", "diffusers", "has the model")
    model: nn.Module = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=16,
    ).eval()  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
        if "to_q" in name or "add_k_proj" in name:
            parameter.data.mul_(3)
    return model, torch.randn(1, 4, 8, 12), {
        "encoder_hidden_states": torch.randn(1, 5, 16), "timestep": torch.tensor([7.0]),
        "pooled_projections": torch.randn(1, 16),
    }  # fmt: skip


@check("attend_and_excite", beyond="pictures of Stable Diffusion, and objects found in them")
def excite() -> Claims:
    """A neglected word is looked at after updates."""
    # Sharpened ten times, the least of four words of a random model is neglected in nine of ten.
    loss, looked = NeglectedWord(sharpen=10.0), [1.0]
    while min(looked) >= THRESHOLD:
        model, latent, given = tiny_sd3()
        first = guide_latents(model, latent, given, WORDS, loss, times=0).maps
        looked = [float(x.max()) for x in first.of_words(first.sharpened(10.0), loss.smooth)]
    pair = [WORDS[looked.index(f(looked))] for f in (min, max)]
    still = attend_and_excite(model, latent, given, pair, step=0, steps=50, strength=0.0)
    # At a fifth of the steps the peak of 0.5 is asked for; 20 rounds reach it in nine of ten
    # random models, and one of forty took 116.
    led = attend_and_excite(model, latent, given, pair, step=10, steps=50, rounds=400, sharpen=10.0)
    before, after = (1 - float(x) for x in (led.losses[0], led.losses[-1]))
    maps = torch.rand(1, TOKENS, 4, requires_grad=True)
    sets = tuple(torch.eye(4, dtype=torch.bool)[i : i + 1] for i in (1, 2))
    seen = TextMaps(maps, GRID, sets)
    plain = NeglectedWord(sharpen=5.0, smooth=0.0)
    peaks = torch.stack([x.amax(1) for x in seen.of_words(seen.sharpened(5.0))])[:, 0]
    least = int(peaks.argmin())
    (slope,) = torch.autograd.grad(plain.loss(seen).sum(), maps, retain_graph=True)
    (own,) = torch.autograd.grad(1 - peaks[least], maps)
    yield claim("alpha=0 latents are bit-equal", "equal",
                torch.equal(still.latents, latent)).equals(True, "the base sampler's")  # fmt: skip
    yield claim("min-over-tokens peak rises", "least peak after updates", after).above(
        before, "that before"
    )
    yield claim("min-over-tokens peak rises", "least peak at the end", after).at_least(
        THRESHOLD, "the threshold at which updates end"
    )
    yield claim("only through the most neglected token", "difference of gradients",
                float((slope - own).abs().max())).equals(0.0, "that of its peak alone")  # fmt: skip
