"""The walk over the tiles of a call that are not empty, sized for the cache of the device."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.tilemap import EMPTY, FULL, PARTIAL

TILE = 128
# Scores held at once: on a CPU they should stay in its second cache, on a GPU they should fill it.
SCORES = {"cpu": 1 << 18, "cuda": 1 << 25}
ROWS = 1 << 20  # the same for rules that need whole rows
# Tiles that are looked at for an estimate, at most.
LOOKED_AT = 1 << 22


def tile_share(call: Call) -> float:
    """Share of the plane that lies in tiles with something in them."""
    if call.placed or not call.n * call.m:
        return 1.0
    support, side = call.rule.support, TILE
    batch, heads = support.extent()
    # A map that must be written out is looked at from farther off, and seems fuller than it is.
    while batch * heads * (-(-call.n // side)) * (-(-call.m // side)) > LOOKED_AT:
        if batch * heads == 1 and support.in_runs:
            break
        side *= 2
    return call.rule.tiles(call.n, call.m, side, device=device_of(call)).density


class Lane(NamedTuple):
    """Batch rows and heads [start, stop) that share a tile map and are worked on together."""

    b: slice
    h: slice


class TileRow(NamedTuple):
    """A tile of queries, and the tiles of keys it meets, with whether each needs a mask."""

    lane: Lane
    rows: slice
    tiles: list[tuple[slice, bool]]


def walk(call: Call) -> Iterator[TileRow]:
    """Walk over the tiles that are not empty."""
    lanes, bq, bk = _sizes(call)
    state = _tile_states(call, bq, bk)
    for b0, b1 in _runs(state, 0, call.b):
        for h0, h1 in _runs(state, 1, call.h):
            one = state[min(b0, state.shape[0] - 1), min(h0, state.shape[1] - 1)].tolist()
            heads = min(h1 - h0, lanes)
            batch = max(1, lanes // heads)
            for b in range(b0, b1, batch):
                for h in range(h0, h1, heads):
                    lane = Lane(slice(b, min(b + batch, b1)), slice(h, min(h + heads, h1)))
                    for t, states in enumerate(one):
                        tiles = [
                            (slice(u * bk, min((u + 1) * bk, call.m)), x != FULL)
                            for u, x in enumerate(states)
                            if x != EMPTY
                        ]
                        if tiles:
                            yield TileRow(lane, slice(t * bq, min((t + 1) * bq, call.n)), tiles)


def _sizes(call: Call) -> tuple[int, int, int]:
    """How many (batch, head) lanes, queries and keys make a tile."""
    lanes, n, m = call.b * call.h, call.n, call.m
    if call.rule.score.needs_row:
        bq = TILE
        while bq > 1 and bq * m > ROWS:
            bq //= 2
        return max(1, min(lanes, ROWS // (bq * max(m, 1)))), bq, max(m, 1)
    room = SCORES.get(call.q.device.type, SCORES["cpu"])
    bq = min(TILE, max(n, 1))
    lanes = max(1, min(lanes, room // (bq * min(m, 2 * TILE) or 1)))
    # A few queries take long runs of keys, many take short ones.
    bk = max(1, room // (lanes * bq) // TILE) * TILE
    return lanes, TILE, min(bk, 2 * TILE if n > TILE and call.q.device.type == "cpu" else bk)


def device_of(call: Call) -> torch.device | str:
    """Where the support can answer for tiles: where its tensors are."""
    tensors = call.rule.support.tensors()
    return tensors[0].device if tensors else "cpu"


def _tile_states(call: Call, bq: int, bk: int) -> Tensor:
    """State of each bq x bk tile, [b or 1, h or 1, t_q, t_k], from the map of 128 x 128 tiles."""
    shape = (-(-call.n // bq), -(-call.m // bk))
    if call.placed or 0 in shape:  # positions are known only when they are looked at
        return torch.full((1, 1, *shape), PARTIAL, dtype=torch.int8)
    state = call.rule.tiles(call.n, call.m, TILE, device=device_of(call)).state.cpu()
    if bq < TILE:
        state = state.repeat_interleave(TILE // bq, dim=2)[:, :, : shape[0]]
    some, every = state != EMPTY, state == FULL
    per = max(1, bq // TILE), -(-bk // TILE)
    fill = (0, shape[1] * per[1] - state.shape[3], 0, shape[0] * per[0] - state.shape[2])
    whole = (*state.shape[:2], shape[0], per[0], shape[1], per[1])
    some = torch.nn.functional.pad(some, fill, value=False).view(whole)
    every = torch.nn.functional.pad(every, fill, value=True).view(whole)
    return some.any(5).any(3).to(torch.int8) + every.all(5).all(3).to(torch.int8)


def _runs(state: Tensor, axis: int, count: int) -> list[tuple[int, int]]:
    """Neighbors on an axis of the tile map with equal states, as [start, stop)."""
    if state.shape[axis] == 1:
        return [(0, count)]
    rows = state.movedim(axis, 0).flatten(1)
    cuts = (rows[1:] != rows[:-1]).any(1).nonzero().flatten() + 1
    return list(pairwise([0, *cuts.tolist(), count]))
