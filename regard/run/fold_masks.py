"""The masks of a fold: which pairs of tiles that are only partly allowed, asked about once.

Tiles that differ in nothing that the support asks about share one mask.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.score.base import At
from regard.core.support.algebra import simple_parts
from regard.core.tilemap import PARTIAL, Grid, tile_states
from regard.run.cutting import Cut


def alike_units(
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


def mask_of(
    call: Call, cut: Cut, units: Tensor, keys: Tensor, filled: Tensor, batch: int, head: int
) -> Tensor:
    """Return which pairs of units [u] and their tiles of keys [u, c] are met: bool [u, q, c k]."""
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


def kinds_of(mask: Tensor) -> Tensor:
    """Number the distinct masks of [u, q, k]."""
    flat = mask.flatten(1)
    place = torch.arange(len(flat), device=flat.device)
    if len(flat) < 3 or bool((flat == flat[:1]).all()):
        return torch.zeros_like(place) if all_same(flat) else place
    # Two random sums tell masks apart but for a chance of 1e-14; equality is then made sure of.
    weights = torch.rand(
        flat.shape[1], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    sums = torch.cat([chunk.double() @ weights.to(flat.device) for chunk in flat.split(64)])
    _, kinds = sums.unique(dim=0, return_inverse=True)
    firsts = torch.stack([torch.nonzero(kinds == x)[0, 0] for x in range(int(kinds.max()) + 1)])
    return kinds if bool((flat == flat[firsts[kinds]]).all()) else place


def all_same(flat: Tensor) -> bool:
    """Whether all rows of [u, ...] are equal."""
    return bool((flat == flat[:1]).all())
