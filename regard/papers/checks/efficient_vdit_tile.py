"""Tiles are linear in frames, the search tells maps apart, and distilling closes the gap."""

from __future__ import annotations

import copy

import torch

from regard.core.call import Call
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.diffusion_models import chosen, on_grid, tiny_wan, wan_out
from regard.papers.shared.measure import gap
from regard.policies.distilling import distill
from regard.policies.frames import AttentionTile, frame_pairs, tile_errors, tiles
from regard.policies.grids import image_of
from regard.policies.registry import policy
from regard.run.runner import run
from regard.verbs import shrink


def video(frames: int, side: int, diagonal: float | None) -> Call:
    """Heads whose frames look at themselves, and alike at all others; or random ones (None)."""
    call = on_grid((frames, side, side))
    if diagonal is None:
        return call.replace(q=3 * call.q)
    alike = torch.randn(2, 1, 2, 1, side * side, 8).expand(-1, -1, -1, frames, -1, -1).flatten(3, 4)
    own = torch.eye(frames, 8).repeat_interleave(side * side, 0).expand(1, 2, -1, -1)
    q = torch.cat((alike[0], own * diagonal * 4), -1)  # scores are divided by sqrt(16)
    return call.replace(q=q, k=torch.cat((alike[1], own), -1))


@check(
    "efficient_vdit_tile",
    long=True,
    beyond="the multi-step consistency distillation before it, and trained video models",
)
def attention_tile() -> Claims:
    """Tiles are linear in frames, the search tells maps apart, and distilling closes the gap."""
    call = on_grid((6, 4, 4), 5)
    whole = AttentionTile()
    whole.take({"references": {0: 6}})
    exact = gap(run(chosen(whole, call)[0]).out, run(call).out)
    counted = [int(frame_pairs(f, 3).sum()) for f in (8, 16, 32)]
    found = []
    for diagonal, error in ((8.0, 0.01), (None, 0.001)):
        one = video(8, 4, diagonal)
        image = image_of(one)
        assert image is not None
        errors = tile_errors(one, image)
        found.append(next(k for k, e in enumerate(errors, 1) if e <= error))
    model, inputs = tiny_wan(4)
    student = copy.deepcopy(model)
    made = policy("efficient_vdit_tile")
    batch = [{**inputs, "timestep": torch.tensor([t]), "return_dict": False} for t in (9, 5)]
    plain = wan_out(model, inputs)
    with shrink(student, policy("efficient_vdit_tile"), keep=0.1, check=False):
        before = float((wan_out(student, inputs) - plain).norm() / plain.norm())
    list(distill(student, made, batch, keep=0.1, steps=200, rate=3e-3))
    with shrink(student, policy("efficient_vdit_tile"), keep=0.1, check=False):
        after = float((wan_out(student, inputs) - plain).norm() / plain.norm())
    yield claim("k=F equals full", "difference", exact).within(
        1e-5, "full attention", because=FLOAT32
    )
    for frames, many in zip((8, 16, 32), counted, strict=True):
        yield claim("number of kept tiles", f"tiles of {frames} frames", many).equals(
            tiles(frames, 3), "the closed form"
        )
    yield claim(
        "number of kept tiles", "tiles from 16 to 32 frames", counted[2] - counted[1]
    ).equals(2 * (counted[1] - counted[0]), "twice those from 8 to 16")
    yield claim("on a synthetic map", "k for identical off-diagonal tiles", found[0]).equals(1, "1")
    yield claim("on a synthetic map", "tiles for random logits", tiles(8, found[1])).equals(
        64, "all"
    )
    yield claim("on a synthetic map", "distance of a distilled transformer", after).below(
        before, "before", times=0.5, because="distilling closes the gap: half of it"
    )
