"""Simulate the cost of a scheme on devices you do not have: work, bytes and time, by rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.rule import Rule
from regard.core.tilemap import EMPTY, PARTIAL, Grid, tile_states, tiled
from regard.schemes.head_split import shares
from regard.schemes.layouts import Contiguous, Dealt, Layout, Striped, ZigZag, balanced

# The most tiles along each side of a simulated sequence.
TILES = 4096
SCHEMES = ("ring", "burst", "gather", "heads")
# FLOPs of a backward relative to its forward: five matrix products against two.
BACKWARD = 2.5
# Bytes moved to merge one number of a part into a float32 output: the part is read and converted,
# read again, and the output is read and written; and to add one to a gradient.
MERGED, ADDED = 16, 8


@dataclass(frozen=True)
class Machine:
    """Devices in nodes: `bandwidth` between nodes and `link` within one, in GB/s each way.

    `flops` is the throughput of attention on one device, in TFLOP/s, and `memory` its memory
    bandwidth, in GB/s.
    """

    devices: int
    nodes: int = 1
    bandwidth: float = 25.0
    link: float = 200.0
    flops: float = 300.0
    memory: float = 3000.0

    def __post_init__(self) -> None:
        if self.devices < 1 or self.nodes < 1 or self.devices % self.nodes:
            fail(
                ValueRangeError, "nodes", f"{self.devices} devices in {self.nodes} nodes",
                "as many devices in each node", "name all devices: --devices 64 --nodes 8",
            )  # fmt: skip
        for name in ("bandwidth", "link", "flops", "memory"):
            if not getattr(self, name) > 0:
                fail(ValueRangeError, name, getattr(self, name), "more than 0", "measure it")


@dataclass(frozen=True)
class LayerShape:
    """Heads, key heads, head size and bytes per number, of one layer and one row of a batch."""

    heads: int = 32
    key_heads: int = 8
    size: int = 128
    item: int = 2


class SchemeCost(NamedTuple):
    """One scheme under one layout: the maximum of each cost over ranks, and seconds per layer.

    `balance` is the mean work of a rank over the maximum; `ideal` is the share of `seconds` that
    would remain if nothing were sent and the work were equal.
    """

    scheme: str
    layout: str
    pairs: float
    balance: float
    bytes: float
    between_nodes: float
    held: float
    seconds: float
    ideal: float


def layouts(rule: Rule, tokens: int, devices: int) -> dict[str, Layout]:
    """Return the layouts to compare, in tiles where they would be of single tokens."""
    size = -(-tokens // TILES)
    return {
        "contiguous": Contiguous(tokens, devices),
        "zigzag": ZigZag(tokens, devices),
        "striped": Striped(tokens, devices, block=size),
        "balanced": balanced(rule, tokens, devices, max(1, min(size, tokens // (2 * devices)))),
    }


def simulate(
    rule: Rule, tokens: int, machine: Machine, shape: LayerShape = LayerShape(), *,
    backward: bool = False,
) -> list[SchemeCost]:  # fmt: skip
    """Return the cost of every scheme under every layout, the fastest first.

    It counts the forward of one layer, and with `backward` also its backward. A ring merges its
    result at every step, which takes memory bandwidth; its messages overlap with computing.

    Pairs and bytes are counted by tiles of the sequence, at most 4,096 a side: a full tile counts
    as a whole, a partial one as half.

    >>> from regard.core.support import Causal
    >>> best = simulate(Rule(Causal()), 65_536, Machine(8))[0]
    >>> round(best.balance, 2), best.ideal > 0.9
    (1.0, True)
    """
    if tokens < 2 * machine.devices:
        fail(
            ValueRangeError, "tokens", tokens, f"at least {2 * machine.devices}, two a device",
            "use fewer devices",
        )  # fmt: skip
    found = []
    for name, counts in _counted(rule, tokens, machine.devices).items():
        found += [
            _by_rows(scheme, name, counts, tokens, machine, shape, backward)
            for scheme in (("ring", "burst", "gather") if backward else ("ring", "gather"))
        ]
        if name == "contiguous":  # heads see all tokens, wherever they are
            found.append(_by_heads(counts.pairs, tokens, machine, shape, backward))
    return sorted(found, key=lambda x: x.seconds)


class Counts(NamedTuple):
    """Pairs [world] of one head, and rows of keys [to, from] and queries [from, to] by rank."""

    pairs: Tensor
    rows: Tensor
    asking: Tensor


def _counted(rule: Rule, tokens: int, world: int) -> dict[str, Counts]:
    """Count what a rule needs from every rank under a layout, by tiles."""
    size = -(-tokens // min(TILES, tokens))
    line = tiled(torch.arange(tokens), size)
    t, starts = len(line), line[:, 0].contiguous()
    owners = {name: x.owner_of(starts) for name, x in layouts(rule, tokens, world).items()}
    support = rule.support.to("cpu")
    batch, heads = support.extent()
    needed = {name: torch.zeros(world, t) for name in owners}
    asking = {name: torch.zeros(world, world, dtype=torch.double) for name in owners}
    work = torch.zeros(t, dtype=torch.double)
    step = max(1, (1 << 24) // (t * batch * heads))
    for first in range(0, t, step):
        own = slice(first, first + step)
        state = tile_states(support, Grid.of(line[own], line, batch, heads).shift(rule.offset))
        there = state != EMPTY
        half = 0.5 * (state == PARTIAL).float()
        work[own] = (there.float() - half).mean((0, 1)).sum(1).double() * size * size
        some = there.flatten(0, 1).any(0).float()
        for name, owner in owners.items():
            needed[name].index_add_(0, owner[own], some)
            asked = torch.zeros(len(some), world).index_add_(1, owner, some) > 0
            asking[name].index_add_(0, owner[own], asked.double() * size)
    found = {}
    for name, owner in owners.items():
        pairs = torch.zeros(world, dtype=torch.double).index_add_(0, owner, work)
        rows = torch.zeros(world, world, dtype=torch.double)
        rows.index_add_(1, owner, (needed[name] > 0).double() * size)
        found[name] = Counts(pairs, rows, asking[name])
    return found


def _by_rows(
    scheme: str, layout: str, counts: Counts, tokens: int, machine: Machine, shape: LayerShape,
    backward: bool,
) -> SchemeCost:  # fmt: skip
    """Cost of a ring or a gather: keys go where they are needed, and gradients return."""
    pairs, rows, asking = counts
    world, passing = machine.devices, scheme != "gather"
    node = torch.arange(world) // (world // machine.nodes)
    each = 2.0 * shape.key_heads * shape.size * shape.item
    sent = rows * each  # [to, from]
    if backward and scheme == "burst":  # queries, gradients and two numbers go, gradients return
        number = shape.heads * shape.size * shape.item
        sent = sent + asking.T * (2.0 * number + 8.0 * shape.heads) + asking * number
    elif backward:  # a ring sends keys again, a gather keeps them; gradients are as many
        sent = sent + rows.T * each + (rows * each if passing else 0.0)
    sent = sent - torch.diag(sent.diagonal())
    across = sent * (node[:, None] != node)
    within, between = (sent - across).sum(0), across.sum(0)
    slow = float((within / machine.link + between / machine.bandwidth).max()) / 1e9
    compute = pairs * shape.heads * 4.0 * shape.size / (machine.flops * 1e12)
    compute = compute * (1 + BACKWARD * backward)
    busy = compute
    if passing:  # every part but the first is merged
        numbers = tokens / world * shape.heads * shape.size
        moved = MERGED + shape.item + backward * (ADDED + shape.item)
        merged = ((rows > 0).sum(1) - 1).clamp(min=0) * numbers * moved
        busy = compute + merged / (machine.memory * 1e9)
    most = float(busy.max())
    seconds = max(most, slow) if passing else most + slow
    own = tokens / world * each
    held = 2 * own if passing else float(rows.sum(1).max()) * each
    return SchemeCost(
        scheme, layout, float(pairs.max()) * shape.heads, float(pairs.mean() / pairs.max()),
        float(sent.sum(0).max()), float(between.max()), held, seconds,
        float(compute.mean()) / seconds,
    )  # fmt: skip


def _by_heads(
    pairs: Tensor, tokens: int, machine: Machine, shape: LayerShape, backward: bool
) -> SchemeCost:
    """Cost of an exchange of tokens for heads, and back."""
    world, own = machine.devices, tokens / machine.devices
    heads = [len(x) for x in shares(shape.heads, world)]
    keys = [min(shape.key_heads, max(x, 1)) for x in heads]
    moved = 2.0 * shape.heads + 2.0 * sum(keys)  # queries and outputs, keys and values
    sent = own * moved * shape.size * shape.item * (world - 1) / world * (1 + backward)
    across = sent * (1 - (world / machine.nodes - 1) / max(1, world - 1))
    slow = ((sent - across) / machine.link + across / machine.bandwidth) / 1e9
    one = float(pairs.sum()) * 4.0 * shape.size / (machine.flops * 1e12) * (1 + BACKWARD * backward)
    compute, mean = one * max(heads), one * shape.heads / world
    held = tokens * (max(heads) + 2.0 * max(keys)) * shape.size * shape.item
    return SchemeCost(
        "heads", "any", float(pairs.sum()) * max(heads), mean / compute, sent, across, held,
        compute + slow, mean / (compute + slow),
    )  # fmt: skip


__all__ = ["Dealt", "LayerShape", "Machine", "SchemeCost", "layouts", "simulate"]
