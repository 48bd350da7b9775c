"""What ranks on Ray run."""

import os
import time

import torch
from torch import distributed as dist

import regard
from regard.core.errors import RuleError, fail
from regard.schemes import ShardedKeys, ZigZag


def off(tokens: int) -> list[float]:
    """Own rank, ranks, and how far a spread call is from one process."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, tokens, 16, dtype=torch.float64) for h in (4, 2, 2))
    layout = ZigZag(tokens, world)
    own = [layout.take(x, rank, dim=2).requires_grad_(True) for x in (q, k, v)]
    rule = regard.Causal() & (regard.Window(16) | regard.Sinks(2))
    out = regard.attend(own[0], ShardedKeys.of(*own[1:], layout=layout, scheme="ring"), rule=rule)
    out.sum().backward()
    whole = [x.requires_grad_(True) for x in (q, k, v)]
    together = regard.attend(*whole, rule)
    together.sum().backward()
    gaps = [(out - layout.take(together, rank, 2)).abs().max()]
    for mine, all_of_it in zip(own, whole, strict=True):
        gaps.append((mine.grad - layout.take(all_of_it.grad, rank, 2)).abs().max())
    return [rank, world, float(max(gaps)), os.getpid()]


def fails(how: str) -> int:
    """Fail on rank 1 alone; the others wait for it."""
    if dist.get_rank() == 1:
        if how == "refuses":
            fail(RuleError, "window", -3, "a width above 0", "pass one")
        if how == "dies":
            os._exit(7)
        time.sleep(600)
    dist.barrier()
    return 0
