"""How a support is folded: each tile of queries with just the tiles of keys it may meet.

Queries are cut into tiles, keys into smaller ones, and tiles of queries that meet equally many
tiles of keys are put in one batch. Where positions lie on a lattice (neighbourhoods, dilation) or
are of kinds, they are first put in an order in which neighbours, or kinds, are together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import and_

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.runs import Lines, Runs
from regard.core.score.base import At
from regard.core.support.algebra import Both, simple_parts
from regard.core.support.bands import Dilated
from regard.core.support.base import Support
from regard.core.support.chosen import Tiles
from regard.core.support.lattice import Neighborhood
from regard.core.support.tokens import Kinds
from regard.core.tilemap import FULL, PARTIAL, WRITTEN, Grid, tile_states
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


def lattice_of(support: Support) -> Support | None:
    """Find the part of a support that asks for a special order of positions."""
    parts = support.parts if isinstance(support, Both) else (support,)
    for part in parts:
        if isinstance(part, Dilated) or (isinstance(part, Neighborhood) and _spread(part)):
            return part
        if isinstance(part, Kinds) and part.mixed:
            return part
    return None


def _spread(part: Neighborhood) -> bool:
    return len(part.lattice) > 1 or max(part.dilation) > 1


def tile_size(support: Support) -> tuple[int, int]:
    """Choose the sides of the tiles for a support."""
    parts = support.parts if isinstance(support, Both) else (support,)
    for part in parts:
        if isinstance(part, Tiles) and min(part.size) >= 16:
            return part.size
        if isinstance(part, Neighborhood) and _spread(part):
            return (64, 16)
    return (64, 32)


def order_of(part: Support | None, n: int, side: int, device: torch.device) -> Tensor | None:
    """Put positions 0..n-1 in an order in which tiles of `side` are compact; None: as they are."""
    if part is None:
        return None
    position = torch.arange(n, device=device)
    if isinstance(part, Dilated):
        return torch.argsort(position % part.step, stable=True)
    if isinstance(part, Kinds):
        return torch.argsort(part.kinds[0, :n].to(device), stable=True)
    assert isinstance(part, Neighborhood)
    axes = len(part.lattice)
    box = max(1, round(side ** (1 / axes)))
    key = torch.zeros_like(position)
    coordinates = part.coordinates(position)
    places = [
        torch.div(x, d, rounding_mode="floor")
        for x, d in zip(coordinates, part.dilation, strict=True)
    ]
    # Residues first, then boxes, then places within the box: each a digit of the sorting key.
    digits = [(x % d, d) for x, d in zip(coordinates, part.dilation, strict=True)]
    digits += [(x // box, -(-s // box)) for x, s in zip(places, part.lattice, strict=True)]
    digits += [(x % box, box) for x in places]
    for digit, base in digits:
        key = key * base + digit
    return torch.argsort(key, stable=True)


@dataclass(frozen=True)
class Cut:
    """A support cut into tiles, for all rows and heads at once.

    `i`, `j` [t, side] are the positions in each tile; `states` int8 [b or 1, h or 1, t_q, t_k] are
    those of each of the `parts` that must all allow a pair.
    """

    size: tuple[int, int]
    orders: tuple[Tensor | None, Tensor | None]
    i: Tensor
    j: Tensor
    parts: tuple[Support, ...]
    states: tuple[Tensor, ...] = ()
    # Where the support has runs: those of some pair, and for each part those of every pair.
    some: Runs | None = None
    whole: tuple[Runs, ...] = ()

    def met(self, batch: int, head: int) -> TileLists:
        """List the tiles that meet, for one row of the batch and one head."""
        if self.some is not None:
            keys, counts = self.some.listed(len(self.i))
            keys = keys.clamp(max=len(self.j) - 1)
            rows = torch.arange(len(self.i), device=keys.device)
            full = reduce(and_, self.whole).holds(rows, keys)
            return TileLists(counts, keys, torch.where(full, FULL, PARTIAL).to(torch.int8))
        return TileLists.of(torch.stack(self._at(batch, head)).amin(0))

    def _at(self, batch: int, head: int) -> list[Tensor]:
        return [x[min(batch, len(x) - 1), min(head, x.shape[1] - 1)] for x in self.states]

    def asked(self, batch: int, head: int, units: Tensor, keys: Tensor, real: Tensor) -> list[bool]:
        """Say for each part whether it masks a pair of tiles keys [u, c] of units [u]."""
        if self.some is not None:
            full = [whole.holds(units, keys) for whole in self.whole]
        else:
            full = [x[units[:, None], keys] == FULL for x in self._at(batch, head)]
        return [not bool(x[real].all()) for x in full]


def cut(call: Call) -> Cut:
    """Cut the support of a call; calls of one shape share it."""
    key = ("cut", call.n, call.m, call.rule.offset, str(call.q.device))
    return call.rule.support.memo(key, lambda: _cut(call))


def _cut(call: Call) -> Cut:
    support, device = call.rule.support, call.q.device
    size, special = tile_size(support), lattice_of(support)
    orders = tuple(
        order_of(special, n, side, device)
        for n, side in zip((call.n, call.m), size, strict=True)
    )  # fmt: skip
    i, j = (
        _tiles(n, side, order, device)
        for n, side, order in zip((call.n, call.m), size, orders, strict=True)
    )
    if support.tensors():
        support = support.to(device)
    parts = support.parts if isinstance(support, Both) else (support,)
    runs = None
    if special is None and support.extent() == (1, 1) and len(i) * len(j) > WRITTEN:
        runs = [p.runs(Lines.over(call.n, call.m, size, call.rule.offset, device)) for p in parts]
    if runs is not None and None not in runs:
        some, whole = zip(*(x for x in runs if x is not None), strict=True)
        return Cut(size, (None, None), i, j, parts, some=reduce(and_, some), whole=whole)
    states = tuple(
        tile_states(part, Grid.of(i, j, *part.extent()).shift(call.rule.offset)) for part in parts
    )
    return Cut(size, (orders[0], orders[1]), i, j, parts, states)


def make_fold(call: Call, batch: int, head: int) -> Fold:
    """Fold the support of a call for one row of the batch and one head."""
    made = cut(call)
    met = made.met(batch, head)
    if call.m % made.size[1]:  # the last tile of keys is filled up, and must be masked
        short = (met.keys == len(made.j) - 1) & (met.states == FULL)
        met = met._replace(states=met.states.masked_fill(short, PARTIAL))
    return Fold(call.n, made.size, _layers(call, made, met, batch, head), *made.orders)


def _tiles(n: int, size: int, order: Tensor | None, device: torch.device) -> Tensor:
    """Positions of each tile, [t, size]; the last ones are filled up with the last position."""
    position = torch.arange(n, device=device) if order is None else order
    short = -n % size
    return torch.cat([position, position[-1:].expand(short)]).view(-1, size)


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
    """Make the masks of some units, and put units of equal mask together."""
    firsts, alike = _alike(call, cut, units, keys, filled)
    mask = _mask(call, cut, units[firsts], keys[firsts], filled[firsts], batch, head)
    kinds, side = _kinds(mask)[alike], cut.size[1]
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


def _alike(
    call: Call, cut: Cut, units: Tensor, keys: Tensor, filled: Tensor
) -> tuple[Tensor, Tensor]:
    """Find units that must have one mask: (one unit of each kind, the kind of each unit).

    Where only the distance matters, and the place of the first keys, units that stand alike among
    their keys have one mask: a window over a million keys is asked about for a few tiles.
    """
    anchor, place = call.rule.support.anchor(), torch.arange(len(units), device=units.device)
    if anchor is None or cut.orders != (None, None):
        return place, place
    side_q, side_k = cut.size
    far = 1 << 40  # beyond any distance
    shown = keys * side_k - units[:, None] * side_q
    by_place = keys < -(-anchor // side_k)
    if call.m % side_k:
        by_place = by_place | (keys == len(cut.j) - 1)
    shown = torch.where(by_place, keys + far, shown).masked_fill(~filled, -far)
    short = (units == len(cut.i) - 1) & (call.n % side_q > 0)
    near = _near(call, cut, units, keys, by_place & filled)
    told = torch.cat([shown, near, short[:, None].long()], 1)
    _, kinds = told.unique(dim=0, return_inverse=True)
    firsts = place.new_full((int(kinds.max()) + 1,), len(units))
    return firsts.scatter_reduce(0, kinds, place, "amin"), kinds


def _near(call: Call, cut: Cut, units: Tensor, keys: Tensor, by_place: Tensor) -> Tensor:
    """Return what distance does to tiles [u, c] that are told by their place: int [u, 2 c].

    For a part of the support that moves with the query, a tile is empty, whole, or (then the
    distance itself is told) neither: the masks of two tiles of one place differ by no more.
    """
    alike = torch.zeros_like(keys)
    if not bool(by_place.any()):
        return torch.cat([alike, alike], 1)
    columns = keys[by_place].unique()
    grid = Grid.of(cut.i, cut.j[columns], 1, 1).shift(call.rule.offset)
    state = torch.zeros(grid.shape[2:], device=keys.device, dtype=keys.dtype)
    varies = torch.zeros_like(state, dtype=torch.bool)
    for part in simple_parts(call.rule.support):
        if part.moves:
            own = tile_states(part, grid)[0, 0]
            state, varies = 3 * state + own, varies | (own == PARTIAL)
    at = units[:, None], torch.searchsorted(columns, keys).clamp(max=len(columns) - 1)
    far = torch.where(varies[at], keys * cut.size[1] - units[:, None] * cut.size[0] + 1, 0)
    return torch.cat([torch.where(by_place, x, 0) for x in (state[at], far)], 1)


def _mask(
    call: Call, cut: Cut, units: Tensor, keys: Tensor, filled: Tensor, batch: int, head: int
) -> Tensor:
    """Say which pairs of units [u] and their tiles of keys [u, c] are met: bool [u, q, c k]."""
    i, j = cut.i, cut.j
    rows, cols = i[units], j[keys].flatten(1)  # [u, q], [u, c k]
    device = rows.device
    at = At(
        torch.tensor(batch, device=device),
        torch.tensor(head, device=device),
        rows[:, :, None],
        cols[:, None],
        rows[:, :, None] + call.rule.offset,
        cols[:, None],
    )
    # Parts that allow all of these tiles need not be asked about their pairs.
    asked = [
        part.allows(at.b, at.h, at.i, at.j)
        for part, masks in zip(
            cut.parts, cut.asked(batch, head, units, keys, filled), strict=True
        )
        if masks
    ]  # fmt: skip
    mask = rows.new_ones((), dtype=torch.bool) if not asked else reduce(torch.logical_and, asked)
    mask = mask.expand(len(units), i.shape[1], cols.shape[1])
    real = filled[:, :, None].expand(*filled.shape, j.shape[1]).flatten(1)
    short = j.numel() - call.m
    if short:
        place = torch.arange(j.shape[1], device=device)
        in_last = (keys == len(j) - 1)[:, :, None] & (place >= j.shape[1] - short)
        real = real & ~in_last.flatten(1)
    return mask & real[:, None]


def _kinds(mask: Tensor) -> Tensor:
    """Number the distinct masks of [u, q, k]."""
    flat = mask.flatten(1)
    place = torch.arange(len(flat), device=flat.device)
    if len(flat) < 3 or bool((flat == flat[:1]).all()):
        return torch.zeros_like(place) if _all_same(flat) else place
    # Two random sums tell masks apart but for a chance of 1e-14; equality is then made sure of.
    weights = torch.rand(
        flat.shape[1], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    sums = torch.cat([chunk.double() @ weights.to(flat.device) for chunk in flat.split(64)])
    _, kinds = sums.unique(dim=0, return_inverse=True)
    firsts = torch.stack([torch.nonzero(kinds == x)[0, 0] for x in range(int(kinds.max()) + 1)])
    return kinds if bool((flat == flat[firsts[kinds]]).all()) else place


def _all_same(flat: Tensor) -> bool:
    return bool((flat == flat[:1]).all())


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


def _regular(units: Tensor, keys: Tensor, mask: Tensor | None, side: int) -> Group:
    """Make a group, and notice where units and keys form arithmetic rows."""
    if len(units) > 1:
        unit_steps, key_steps = units.diff(), keys[:, 0].diff()
        even = _all_same(unit_steps[:, None]) and _all_same(key_steps[:, None])
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
