"""A ring equals one process, passes each block to each other rank once, and takes no more room.

The peak of a rank counts all tensors that are alive at once; `tests/schemes/test_memory.py` has the
peaks of processes as the system counts them.
"""

from __future__ import annotations

import torch

from regard.bench.live_bytes import Live
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.over_ranks import alone, drawn, over_ranks
from regard.run.runner import run
from regard.schemes import Contiguous, Dealt, ShardedKeys
from regard.schemes.local_ranks import on_ranks
from regard.schemes.messages import Peers


def peak(world: int) -> int:
    """Bytes of all tensors of a rank at once, the most of any; each rank holds 64 tokens."""
    q, k, v, d_out = drawn(1, 4, 2, 64 * world, 16)
    layout = Contiguous(64 * world, world)

    def one(peers: Peers) -> int:
        with Live() as seen:
            own = [layout.take(x, peers.rank, 2).requires_grad_(True) for x in (q, k, v)]
            keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme="ring")
            out = run(Call(own[0], keys)).out
            torch.autograd.grad(out, own, layout.take(d_out, peers.rank, 2))
        return seen.peak

    return max(on_ranks(world, one))


@check(
    "ring_attention",
    beyond="devices on a network, training at length, and what a kernel uses inside",
)
def ring_attention() -> Claims:
    """Ranks equal one process; blocks are passed once to each; memory of a rank does not grow."""
    off = 0.0
    for world in (4, 8):
        n = 96 + world - 1  # no multiple of the ranks
        q, k, v, d_out = drawn(2, 4, 2, n, 16)
        real = torch.rand(2, n) < 0.9
        for padding in (None, real):
            rule = Rule(Causal())
            one = alone(q, k, v, d_out, rule, padding)
            many = over_ranks(q, k, v, d_out, rule, Contiguous(n, world), "ring", padding)
            off = max(off, many.off(one))
    yield claim("equal single-device attention", "difference of outputs and gradients", off).within(
        1e-5, "one process", because=CATALOGUE
    )
    world, n = 8, 128
    q, k, v, d_out = drawn(1, 4, 2, n, 16)
    many = over_ranks(q, k, v, d_out, Rule(Everything()), Contiguous(n, world), "ring")
    sent = {x.messages.total() for x in many.forward}
    size = {x.sent for x in many.forward}
    block = 2 * (n // world) * 2 * 16 * 4
    yield claim("exactly N-1 KV blocks", "messages of each rank", max(sent)).equals(7, "N - 1")
    yield claim("exactly N-1 KV blocks", "fewest messages of a rank", min(sent)).equals(7, "N - 1")
    yield claim("exactly N-1 KV blocks", "bytes of each rank", max(size)).equals(
        7 * block, "those of N - 1 blocks"
    )
    yield claim("peak bytes unchanged", "bytes alive at once at N = 8", peak(8)).at_most(
        peak(4), "those at N = 4 and half the length", plus=8 * 64 * 4 + 64,
        because="8 bytes for the position of each token of four more ranks, and flags",
    )  # fmt: skip
    rule, turned = Rule(Causal()), []
    for shift in range(3):
        owners = tuple((tile + shift) % world for tile in range(world))
        turned.append(over_ranks(q, k, v, d_out, rule, Dealt(n, world, n // world, owners), "ring"))
    off = max(x.off(turned[0][:4]) for x in turned[1:])
    yield claim("Order of blocks", "difference between orders", off).within(
        1e-5, "another order", because=FLOAT32
    )
