"""Video-Infinity: the frames of a long video over ranks, which share borders and a few frames.

Each rank holds consecutive frames. Temporal attention covers `near` frames on both sides, and a few
frames of all ranks; convolutions read the frames at the border; norms are over all frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.score import Dot, ScoreStep
from regard.core.support import Kinds, Window
from regard.schemes.layouts import Contiguous
from regard.schemes.messages import Peers

# The timestep, of 1,000, at which early denoising steps end: in these, frames agree on content.
EARLY = 800


def shared_frames(frames: int, world: int, many: int = 16) -> Tensor:
    """Return the frames that all ranks attend to: equally many of each rank, evenly spaced.

    >>> shared_frames(12, 2, 4).tolist()
    [0, 3, 6, 9]
    """
    layout, found = Contiguous(frames, world), []
    for rank in range(world):
        own, count = layout.positions(rank), many // world + (rank < many % world)
        count = min(count, len(own))
        found.append(own[torch.arange(count) * len(own) // max(1, count)])
    return torch.cat(found)


class _Bias:
    """Add to the scores of shared frames, or of those nearby."""

    def __init__(self, shared: Tensor, near: int, early: bool, bias: float) -> None:
        self.shared, self.near, self.early, self.bias = shared, near, early, bias

    def __repr__(self) -> str:
        kind = "shared" if self.early else "near"
        return f"bias of {self.bias:g} on frames that are {kind}"

    def __call__(self, s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        shared = self.shared.to(j.device)[j.clamp(0, len(self.shared) - 1)]
        local = (i - j).abs() <= self.near
        return s + self.bias * (shared if self.early else local).to(s.dtype)


@method(
    "video_infinity",
    call="from regard.schemes import ShardedKeys\n"
    "from regard.schemes.video_clips import clip_rule\n"
    "regard.attend(q, ShardedKeys.of(k, v, mesh), rule=clip_rule(frames, world))",
)
def clip_rule(
    frames: int, world: int, *, near: int = 8, many: int = 16, timestep: float | None = None,
    bias: float = 10.0,
) -> Rule:  # fmt: skip
    """Return the rule of temporal attention: nearby frames, and those that all ranks share.

    With a `timestep` of 0 to 1,000, early steps add `bias` to the scores of shared frames and later
    ones to those of nearby frames. A frame that is both counts once. With consecutive shards, a
    rank sends at most 2 near frames and its shared ones, however many it holds.

    >>> print(clip_rule(8, 2, near=1, many=2).draw(8))
    ##..#...
    ###.#...
    ####....
    #.###...
    #..###..
    #...###.
    #...####
    #...#.##
    """
    if near < 0 or many < 0 or world < 1 or frames < world:
        fail(
            ValueRangeError, "frames", f"{frames} over {world} ranks, near={near}, many={many}",
            "a frame for each rank at least, and counts of at least 0", "use fewer ranks",
        )  # fmt: skip
    kinds = torch.zeros(frames, dtype=torch.long)
    kinds[shared_frames(frames, world, many)] = 1
    shared = Kinds(kinds, torch.tensor([[False, True], [False, True]]))
    score: Any = Dot()
    if timestep is not None:
        score = Dot() + ScoreStep(_Bias(kinds.bool(), near, timestep >= EARLY, bias))
    return Rule(Window(near + 1) | shared, score)


def with_borders(x: Tensor, near: int, peers: Peers, dim: int = 2) -> Tensor:
    """Pad x, whose axis `dim` is the own frames, with `near` frames of both neighbors.

    The ends of the video are padded with zeros, as in a convolution. Not differentiable.
    """
    if near > x.shape[dim]:
        fail(
            ValueRangeError, "near", f"{near} frames of a neighbor that holds {x.shape[dim]}",
            "at most as many as a rank holds", "use fewer ranks",
        )  # fmt: skip
    left, right = peers.rank - 1, peers.rank + 1
    first, last = x.narrow(dim, 0, near), x.narrow(dim, x.shape[dim] - near, near)
    before, after = torch.zeros_like(first), torch.zeros_like(last)
    sends, gets = {}, {}
    if left >= 0:
        sends[left], gets[left] = first.contiguous(), before
    if right < peers.world:
        sends[right], gets[right] = last.contiguous(), after
    peers.calls += 1
    peers.exchange(sends, gets, "exchanging borders").wait()
    return torch.cat((before, x.detach(), after), dim)


def group_norm(
    x: Tensor, groups: int, peers: Peers, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalize x [b, c, own frames, ...] by the mean and variance of all frames of all ranks.

    It takes two sums over ranks of b x groups numbers. Not differentiable.
    """
    b, c = x.shape[:2]
    wide = x.detach().reshape(b, groups, -1).to(torch.float64)
    peers.calls += 1
    size = torch.full_like(wide[..., 0], wide.shape[2])
    sums = peers.total(torch.stack((wide.sum(-1), size)), "the mean of a group norm")
    mean = (sums[0] / sums[1])[..., None]
    square = peers.total((wide - mean).square().sum(-1), "the variance of a group norm")
    normed = (wide - mean) / (square / sums[1] + eps).sqrt()[..., None]
    out = normed.view(x.shape).to(x.dtype)
    shape = (1, c, *(1,) * (x.dim() - 2))
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)
