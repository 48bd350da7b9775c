"""What a scheme would cost on devices that one does not have: work, bytes and time, by rank."""

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

# Tiles along each side of a simulated sequence, at most.
TILES = 4096
SCHEMES = ("ring", "burst", "gather", "heads")
# FLOPs of a backward by those of its forward: five products of matrices for two.
BACKWARD = 2.5
# Bytes of float32 that are moved to merge a number of a part into the output: the part is read and
# made wide, read again, and the output is read and written; and to add one to a gradient.
MERGED, ADDED = 16, 8


@dataclass(frozen=True)
class Machine:
    """Devices in nodes: `bandwidth` between nodes and `link` within one, in GB/s each way.

    `flops` is what attention reaches on one device, in TFLOP/s, and `memory` what its memory moves,
    in GB/s.
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
    """Heads, key heads, head size and bytes of a number, of one layer and one row of a batch."""

    heads: int = 32
    key_heads: int = 8
    size: int = 128
    item: int = 2


class SchemeCost(NamedTuple):
    """One scheme under one layout: the rank with most of each, and the seconds of one layer.

    `balance` is the mean work of a rank by that of the one with most; `ideal` is the share of
    `seconds` that would do if nothing were sent and all had as much to do.
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
    """Return the layouts that are compared, in tiles where they would be of single tokens."""
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
    """Return what every scheme costs under every layout, the quickest first.

    One layer's forward is counted; with `backward`, that and its backward. A ring merges what it
    attends to at every step, which its memory must move; what it sends is hidden behind computing.

    Pairs and bytes are counted by tiles of the sequence, 4,096 a side at most, in which a tile that
    is not empty counts as a whole, or by half where it is only partly met.

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
        if name == "contiguous":  # heads see all tokens, wherever these are
            found.append(_by_heads(counts.pairs, tokens, machine, shape, backward))
    return sorted(found, key=lambda x: x.seconds)


class Counts(NamedTuple):
    """Pairs [world] of one head; rows of keys [to, from], and of queries [from, to], by rank."""

    pairs: Tensor
    rows: Tensor
    asking: Tensor


def _counted(rule: Rule, tokens: int, world: int) -> dict[str, Counts]:
    """Count what a rule asks of every rank, by tiles: by layout."""
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
    """A ring, or a gather: keys go where they are needed, and their gradients home."""
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
    """An exchange of tokens for heads, and back."""
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
