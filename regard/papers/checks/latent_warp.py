"""No flow makes frames equal; nothing valid leaves cross-frame attention; warps are undone."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from regard.controls.diffusion import CrossFrameAttention, warp_latent
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.shared.picture_calls import GRID, TOKENS, pictures, with_edits

FRAMES, STEPS, EARLY = 4, 10, 6


def _frames(latents: Tensor, flow: Tensor, valid: Tensor) -> Tensor:
    """Warp each frame [f, c, h, w] from the one before, in order."""
    made = [latents[0]]
    for one in latents[1:]:
        made.append(warp_latent(made[-1], one, flow, valid))
    return torch.stack(made)


def _denoised(latents: Tensor, clean: Tensor, flow: Tensor, valid: Tensor, early: int) -> Tensor:
    """A toy denoiser: frames read one another, and come nearer to the clean ones with noise left.

    Its attention is that of `CrossFrameAttention` on the latents themselves.
    """
    z = latents
    for step in range(STEPS):
        if step < early:
            z = _frames(z, flow, valid)
        call = pictures(FRAMES)
        q = z.flatten(2).transpose(1, 2).reshape(FRAMES, TOKENS, 2, 8).transpose(1, 2)
        call = call.replace(q=q.double(), k=q.double(), v=q.double())
        read = with_edits(call, CrossFrameAttention().edits())[0]
        read = read.transpose(1, 2).reshape(FRAMES, TOKENS, 16).transpose(1, 2).view_as(z).to(z)
        z = z + 0.2 * (clean + 0.3 * (read - z) - z)
    return z


def _error(z: Tensor, flow: Tensor, valid: Tensor) -> float:
    """How far frames are from those before them, moved along the flow, where that is known."""
    pairs = pairwise(z)
    return float(torch.stack([
        (warp_latent(a, b, flow, valid) - b)[:, valid].square().mean() for a, b in pairs
    ]).mean())  # fmt: skip


@check(
    "latent_warp",
    beyond="videos of Stable Diffusion with ControlNet, and flow that a model estimates",
)
@torch.no_grad()
def latent_warp() -> Claims:
    """No flow makes frames equal; nothing valid leaves cross-frame attention."""
    still, every = torch.zeros(2, *GRID), torch.ones(GRID, dtype=torch.bool)
    latents = torch.randn(FRAMES, 16, *GRID)
    same = _frames(latents, still, every)
    free = _frames(latents, still, ~every)
    right, left = still.clone(), still.clone()
    right[1], left[1] = -1.0, 1.0
    there = warp_latent(latents[0], latents[1], right, every)
    back = warp_latent(there, latents[1], left, every)
    moving = torch.stack([latents[0].roll(i, -1) for i in range(FRAMES)])
    valid = every.clone()
    valid[:, 0] = False  # what comes in from outside
    noisy = torch.randn(FRAMES, 16, *GRID)
    clean = moving + 0.5 * torch.randn(FRAMES, 16, *GRID)
    errors = [_error(_denoised(noisy, clean, right, valid, n), right, valid) for n in (EARLY, 0)]
    yield claim("Zero flow with M=1", "frames that differ from the first",
                sum(not torch.equal(x, same[0]) for x in same)).equals(0, "none")  # fmt: skip
    yield claim("M=0 equals cross-frame", "latents equal", torch.equal(free, latents)).equals(
        True, "those that attention alone gets"
    )
    yield claim("integer translation then inverse", "cells that differ inside",
                int((back[..., :-1] != latents[0][..., :-1]).sum())).equals(0, "none")  # fmt: skip
    yield claim("temporal warp error falls", "error of a toy denoiser", errors[0]).below(
        errors[1], "that of cross-frame attention alone"
    )
