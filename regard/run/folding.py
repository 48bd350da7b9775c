"""How a support is folded: each tile of queries with just the tiles of keys it may meet.

Queries are cut into tiles, keys into smaller ones, and tiles of queries that meet equally many
tiles of keys are put in one batch. Where positions lie on a lattice (neighbourhoods, dilation) or
are of kinds, they are first put in an order in which neighbours, or kinds, are together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.tilemap import FULL, PARTIAL
from regard.run.cutting import Cut, cut
from regard.run.fold_masks import alike_units, all_same, kinds_of, mask_of
from regard.run.tile_lists import TileLists

# Pairs from which on a few partial tiles are split off from many full ones.
SPLIT_ENTRIES = 1 << 21
# Masks that differ from tile to tile are split off from full tiles beyond this many entries.
MASK_ENTRIES = 1 << 24
# Pairs that are asked about to make masks, at most.
LOOK_ENTRIES = 1 << 27


@dataclass(frozen=True)
class Group:
    """Tiles of queries that each meet `keys.shape[1]` tiles of keys.

    `units` [u] are query tiles, `keys` [u, c] the key tiles of each; `mask` [1 or u, 1, q, c k]
    says which pairs meet, None for all.
    """

    units: Tensor
    keys: Tensor
    mask: Tensor | None
    # Keys that are really used of those tiles.
    width: int
    # First unit and step of units and keys, where they form arithmetic rows: then no copy is made.
    regular: tuple[int, int, int, int] | None = field(default=None)

    @property
    def pairs(self) -> int:
        """Pairs of tiles."""
        return self.keys.numel()

    @cached_property
    def rows(self) -> tuple[int, int] | None:
        """First and step of the units, where these form an arithmetic row: a slice reads them."""
        return _row(self.units)

    @cached_property
    def columns(self) -> list[tuple[int, int]] | None:
        """First and step of each column of keys; None unless all rise together by one step."""
        found = [_row(x) for x in self.keys.T]
        known = [x for x in found if x is not None]
        alike = len(known) == len(found) and len({step for _, step in known}) == 1
        return known if alike else None


@dataclass(frozen=True)
class Fold:
    """A folded support for one row of the batch and one head, or for all alike.

    `order_q` and `order_k` say which position stands at each place, None for all in a row.
    Groups of different `layers` may share queries and must be merged.
    """

    n: int
    size: tuple[int, int]
    layers: tuple[tuple[Group, ...], ...]
    order_q: Tensor | None = None
    order_k: Tensor | None = None

    @cached_property
    def complete(self) -> bool:
        """Whether every tile of queries meets some key in the first layer."""
        units = -(-self.n // self.size[0])
        return sum(len(g.units) for g in self.layers[0]) == units

    @property
    def pairs(self) -> int:
        """Pairs of positions looked at."""
        return sum(g.pairs for layer in self.layers for g in layer) * self.size[0] * self.size[1]


def make_fold(call: Call, batch: int, head: int) -> Fold:
    """Fold the support of a call for one row of the batch and one head."""
    made = cut(call)
    met = made.met(batch, head)
    if call.m % made.size[1]:  # the last tile of keys is filled up, and must be masked
        short = (met.keys == len(made.j) - 1) & (met.states == FULL)
        met = met._replace(states=met.states.masked_fill(short, PARTIAL))
    return Fold(call.n, made.size, _layers(call, made, met, batch, head), *made.orders)


def _layers(
    call: Call, cut: Cut, met: TileLists, batch: int, head: int
) -> tuple[tuple[Group, ...], ...]:
    """Group the query tiles; where masks would be large, full tiles are a layer of their own."""
    i, j = cut.i, cut.j
    tiles, area = int(met.counts.sum()), i.shape[1] * j.shape[1]
    full = int(((met.states == FULL) & met.real).sum())
    # Looking at every pair costs more than merging two layers, where few tiles are partial.
    mostly = 4 * full >= 3 * tiles and tiles * area > SPLIT_ENTRIES
    few = tiles * area <= LOOK_ENTRIES or call.rule.support.anchor() is not None
    if few and not mostly:
        groups = _grouped(call, cut, met, batch, head)
        entries = sum(g.mask.numel() for g in groups if g.mask is not None)
        if entries <= MASK_ENTRIES or full * 2 < tiles:
            return _without_shared(groups, j.shape[1])
    whole = _grouped(call, cut, met.only(FULL), batch, head)
    part = _grouped(call, cut, met.only(PARTIAL), batch, head)
    return (whole, part)


def _without_shared(groups: tuple[Group, ...], side: int) -> tuple[tuple[Group, ...], ...]:
    """Put tiles of keys that many units share in a layer of their own."""
    split = [_split(g, side) for g in groups]
    extra = tuple(off for _, off in split if off is not None)
    main = tuple(g for g, _ in split)
    return (main, extra) if extra else (main,)


def _grouped(call: Call, cut: Cut, met: TileLists, batch: int, head: int) -> tuple[Group, ...]:
    counts, side = met.counts, cut.size[1]
    groups: list[Group] = []
    for count, least in _buckets(counts):
        units = torch.nonzero((counts <= count) & (counts >= least)).flatten()
        keys = met.keys[units, :count]
        filled = torch.arange(count, device=keys.device) < counts[units, None]
        if least == count and bool((met.states[units, :count] == FULL).all()):
            groups.append(_regular(units, keys, None, side))
            continue
        groups += _masked(call, cut, units, keys, filled, batch, head)
    return tuple(groups)


def _buckets(counts: Tensor, most: int = 64) -> list[tuple[int, int]]:
    """Give (count, least count) of each group: one for each count, or joined where many differ."""
    found = [int(c) for c in counts.unique() if c > 0]
    if len(found) <= most:
        return [(c, c) for c in found]
    buckets, least = [], found[0]
    for c, after in zip(found, [*found[1:], None], strict=True):
        if after is None or after > max(least + 1, least * 1.3):
            buckets.append((c, least))
            least = after or 0
    return buckets


def _masked(
    call: Call, cut: Cut, units: Tensor, keys: Tensor, filled: Tensor, batch: int, head: int
) -> list[Group]:
    """Build the masks of some units, and put units of equal mask together."""
    firsts, alike = alike_units(call, cut, units, keys, filled)
    mask = mask_of(call, cut, units[firsts], keys[firsts], filled[firsts], batch, head)
    kinds, side = kinds_of(mask)[alike], cut.size[1]
    # Units of one mask share it; masks of single units are kept together, in one batch.
    groups, single = [], []
    for kind in kinds.unique().tolist():
        mine = torch.nonzero(kinds == kind).flatten()
        if len(mine) == 1:
            single.append(mine)
        else:
            groups.append(_regular(units[mine], keys[mine], mask[alike[mine[:1]], None], side))
    if single:
        mine = torch.cat(single)
        if bool((keys[mine].diff(dim=1) == 1).all()):  # each a view of its own
            groups += [_regular(units[m], keys[m], mask[alike[m], None], side) for m in single]
            return groups
        groups.append(_regular(units[mine], keys[mine], mask[alike[mine], None], side))
    return groups


def _split(group: Group, side: int) -> tuple[Group, Group | None]:
    """Take tiles of keys that all units share (sinks, a prefix) off a group that is regular but
    for them: both parts are then views, and merging costs less than copying keys would.
    """
    shared = (group.keys == group.keys[:1]).all(0)
    count = int(shared.long().cumprod(0).sum())
    rest = group.keys[:, count:]
    few = group.regular is not None or len(group.units) < 8 or not 0 < count < len(shared)
    if few or (group.mask is not None and len(group.mask) > 1):
        return group, None
    masks: tuple[Tensor | None, Tensor | None] = (None, None)
    if group.mask is not None:
        masks = group.mask[..., : count * side], group.mask[..., count * side :]
    main = _regular(group.units, rest, masks[1], side)
    off = _regular(group.units, group.keys[:, :count], masks[0], side)
    if main.regular is None or off.regular is None:
        return group, None
    return main, off


def _row(x: Tensor) -> tuple[int, int] | None:
    """Return first and step of numbers that rise by one step, None where they do not.

    >>> _row(torch.tensor([3, 5, 7])), _row(torch.tensor([3, 5, 6])), _row(torch.tensor([3, 3]))
    ((3, 2), None, None)
    """
    steps = x.diff()
    step = int(steps[0]) if len(steps) else 1
    return (int(x[0]), step) if step > 0 and all_same(steps[:, None]) else None


def _regular(units: Tensor, keys: Tensor, mask: Tensor | None, side: int) -> Group:
    """Build a group, and notice where units and keys form arithmetic rows."""
    if len(units) > 1:
        unit_steps, key_steps = units.diff(), keys[:, 0].diff()
        even = all_same(unit_steps[:, None]) and all_same(key_steps[:, None])
        step, key_step = int(unit_steps[0]), int(key_steps[0])
    else:
        even, step, key_step = True, 1, 0
    in_a_row = keys.shape[1] == 1 or bool((keys.diff(dim=1) == 1).all())
    regular = (int(units[0]), step, int(keys[0, 0]), key_step)
    if not (even and in_a_row and key_step >= 0):
        return Group(units, keys, mask, keys.shape[1] * side)
    width = keys.shape[1] * side
    if mask is not None:  # leave out the last keys that nobody meets
        used = mask.flatten(0, 2).any(0).nonzero()
        width = int(used.max()) + 1 if len(used) else 1
        mask = mask[..., :width]
    return Group(units, keys, mask, width, regular)
