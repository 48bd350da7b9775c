"""Clips of a video over ranks are one video, and send no more for more frames."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.rule import Rule
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import seed
from regard.papers.shared.gloo_ranks import clip, largest
from regard.papers.shared.measure import gap
from regard.run.api import attend
from regard.schemes import Contiguous, ShardedKeys, Traffic, traffic
from regard.schemes.local_ranks import on_ranks
from regard.schemes.messages import Peers
from regard.schemes.video_clips import clip_rule, group_norm


def clips(q: Tensor, k: Tensor, v: Tensor, rule: Rule, world: int) -> tuple[Tensor, list[Traffic]]:
    """Attend over ranks that hold frames in a row."""
    layout = Contiguous(q.shape[2], world)

    def one(peers: Peers) -> tuple[Tensor, Traffic]:
        own = [layout.take(x, peers.rank, 2) for x in (q, k, v)]
        with traffic() as sent:
            out = attend(own[0], ShardedKeys.of(own[1], own[2], peers, layout=layout), rule=rule)
        return out, sent

    found = on_ranks(world, one)
    return torch.cat([x[0] for x in found], 2), [x[1] for x in found]


@check(
    "video_infinity",
    beyond="videos of 2,300 frames on 8 GPUs",
)
def video_infinity() -> Claims:
    """Attention, norm and order of frames are those of one process; bytes stay."""
    off, sent = 0.0, {}
    for world in (2, 4):
        for frames in (32, 64):
            for timestep in (None, 900.0, 300.0):
                q, k, v = (torch.randn(6, 2, frames, 8) for _ in range(3))
                rule = clip_rule(frames, world, near=4, many=4, timestep=timestep)
                out, ranks = clips(q, k, v, rule, world)
                off = max(off, gap(out, attend(q, k, v, rule)))
                sent[world, frames] = max(x.sent for x in ranks)
    apart = largest([
        (clip, (seed(), world, 32, timestep)) for world in (2, 3, 4) for timestep in (None, 900.0)
    ])  # fmt: skip
    yield claim("Gloo with 2-4 CPU", "difference of a layer over time, processes", apart).within(
        1e-5, "one process with the same mask", because=CATALOGUE
    )
    yield claim("equal the single-process model", "difference of temporal attention", off).within(
        1e-5, "one process with the same mask", because=CATALOGUE
    )
    q, k, v = (torch.randn(6, 2, 24, 8) for _ in range(3))
    out, _ = clips(q, k, v, clip_rule(24, 4, near=24), 4)
    yield claim("full temporal attention", "difference", gap(out, attend(q, k, v))).within(
        1e-5, "attention to all frames", because=FLOAT32
    )
    x = torch.randn(2, 6, 24, 3)
    layout = Contiguous(24, 4)
    normed = torch.cat(
        on_ranks(4, lambda peers: group_norm(layout.take(x, peers.rank, 2), 3, peers)), 2
    )
    yield claim(
        "GroupNorm equals", "difference", gap(normed, torch.nn.functional.group_norm(x, 3))
    ).within(1e-5, "the norm of all frames", because=FLOAT32)
    for world in (2, 4):
        yield claim(
            "bytes sent do not grow", f"bytes of 64 frames, {world} ranks", sent[world, 64]
        ).equals(sent[world, 32], "those of 32 frames")
    order = [layout.positions(rank).tolist() for rank in range(4)]
    kept = [x for own in order for x in own] == list(range(24))
    yield claim("frame order", "frames of ranks in a row are in order", kept).equals(True, "yes")
