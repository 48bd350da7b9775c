"""Ranks that are processes of gloo: what each does, and how far it is from one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, fail
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.papers.seeding import begin
from regard.papers.shared.over_ranks import alone, drawn
from regard.run.api import attend
from regard.run.runner import run
from regard.schemes import Contiguous, ShardedKeys
from regard.schemes.local_processes import Job, launch
from regard.schemes.messages import Peers
from regard.schemes.video_clips import clip_rule, group_norm


def attention(seed: int, world: int, scheme: str, causal: bool) -> float:
    """Attend on this rank, forward and backward: the largest difference from one process."""
    begin(seed)
    q, k, v, d_out = drawn(2, 4, 4, 48, 16)
    rule, layout = Rule(Causal() if causal else Everything()), Contiguous(48, world)
    wanted, peers = alone(q, k, v, d_out, rule), Peers()
    own = [layout.take(x, peers.rank, 2).requires_grad_(True) for x in (q, k, v)]
    keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme=scheme)
    out = run(Call(own[0], keys, rule)).out
    found = (out, *torch.autograd.grad(out, own, layout.take(d_out, peers.rank, 2)))
    return max(
        float((a - layout.take(b, peers.rank, 2)).abs().max())
        for a, b in zip(found, wanted, strict=True)
    )


def clip(seed: int, world: int, frames: int, timestep: float | None) -> float:
    """Run a layer over time on this rank's frames: the largest difference from one process.

    The layer normalizes groups of channels over all frames, attends over time with the bias of
    Video-Infinity, and adds what it finds.
    """
    begin(seed)
    rule = clip_rule(frames, world, near=4, many=4, timestep=timestep)
    x, maps = torch.randn(1, 16, frames, 6), torch.randn(4, 16, 16) / 4

    def layer(
        x: Tensor, normed: Tensor, look: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        tokens = normed[0].permute(2, 1, 0)  # [space, frames, channels]
        q, k, v = ((tokens @ w).unflatten(-1, (2, 8)).transpose(1, 2) for w in maps[:3])
        seen = look(q, k, v).transpose(1, 2).flatten(2) @ maps[3]
        return x + seen.permute(2, 1, 0)[None]

    wanted = layer(x, F.group_norm(x, 4), lambda q, k, v: attend(q, k, v, rule))
    layout, peers = Contiguous(frames, world), Peers()
    own = layout.take(x, peers.rank, 2)

    def over_ranks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, ShardedKeys.of(k, v, peers, layout=layout), rule=rule)

    found = layer(own, group_norm(own, 4, peers), over_ranks)
    return float((found - layout.take(wanted, peers.rank, 2)).abs().max())


def largest(jobs: Sequence[tuple[Callable[..., float], Sequence[object]]]) -> float:
    """Run functions of this file on as many ranks as their second argument; the largest number.

    Each job is a function and its arguments.
    """
    ended = launch([
        Job(int(str(args[1])), f"{target.__module__}:{target.__name__}", tuple(args))
        for target, args in jobs
    ])  # fmt: skip
    bad = [x for ranks in ended for x in ranks if x.code != 0]
    if bad:
        fail(RuleError, f"rank {bad[0].rank}", bad[0].last, "an end", "run it with one process")
    return max(float(x.result) for ranks in ended for x in ranks)


__all__ = ["attention", "clip", "largest"]
