"""Burst attention equals one process, and its backward sends queries in place of keys."""

from __future__ import annotations

from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import seed
from regard.papers.shared.gloo_ranks import attention, largest
from regard.papers.shared.over_ranks import alone, drawn, over_ranks
from regard.schemes import Contiguous, Dealt, ZigZag


@check(
    "burst_attention",
    beyond="devices on a network, and the speed of training",
)
def burst_attention() -> Claims:
    """Ranks equal one process; bytes of each hop are the paper's; any rank may begin."""
    off, world, n, h, d = 0.0, 4, 64, 4, 16
    for support in (Causal(), Everything()):
        for layout in (Contiguous(n, world), ZigZag(n + 3, world)):
            q, k, v, d_out = drawn(2, h, h, layout.length, d)
            rule = Rule(support)
            one = alone(q, k, v, d_out, rule)
            off = max(off, over_ranks(q, k, v, d_out, rule, layout, "burst").off(one))
    apart = largest([(attention, (seed(), 2, "burst", causal)) for causal in (True, False)])
    yield claim("equal dense autograd", "difference of outputs and gradients", off).within(
        1e-5, "one process", because=CATALOGUE
    )
    yield claim("equal dense autograd", "the same, 2 processes of gloo", apart).within(
        1e-5, "one process", because=CATALOGUE
    )
    q, k, v, d_out = drawn(1, h, h, n, d)
    rule, layout = Rule(Everything()), Contiguous(n, world)
    burst = over_ranks(q, k, v, d_out, rule, layout, "burst")
    ring = over_ranks(q, k, v, d_out, rule, layout, "ring")
    hops, own = world - 1, h * n // world
    forward = burst.forward[0].sent / hops / 4
    backward = (burst.both[0].sent - burst.forward[0].sent) / hops / 4
    other = (ring.both[0].sent - ring.forward[0].sent) / hops / 4
    yield claim("counted bytes per hop", "numbers a hop, forward", forward).equals(
        2.0 * own * d, "2 (n/G) d of each head"
    )
    yield claim("counted bytes per hop", "numbers a hop, backward", backward).equals(
        3.0 * own * d + 2.0 * own, "3 (n/G) d + 2 n/G of each head"
    )
    yield claim("counted bytes per hop", "numbers a hop of a backward", backward).below(
        other, "those of a ring"
    )
    rule = Rule(Causal())
    turned = []
    for shift in range(world):
        owners = tuple((tile + shift) % world for tile in range(world))
        layout = Dealt(n, world, n // world, owners)
        turned.append(over_ranks(q, k, v, d_out, rule, layout, "burst"))
    off = max(x.off(turned[0][:4]) for x in turned[1:])
    yield claim("invariant to the ring start", "difference between starts", off).within(
        1e-5, "another start", because=FLOAT32
    )
