"""Stride turns a sliding window into a blocked one, and never visits more tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.analysis.tile_visits import fastest_stride, tile_visits
from regard.core.support import Neighborhood
from regard.core.tilemap import EMPTY
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.attending import explicit
from regard.papers.shared.measure import gap
from regard.run.api import attend


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return explicit(q, k, v, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf))


def _tile_order(lattice: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """Order of the positions of a lattice when tiles of it are laid out one after another."""
    rows, cols = lattice
    place = torch.arange(rows * cols).view(rows // tile[0], tile[0], cols // tile[1], tile[1])
    return place.permute(0, 2, 1, 3).flatten()


def _counted(near: Neighborhood, tile: tuple[int, int]) -> tuple[int, int]:
    """Count tile pairs that hold some allowed pair, and those full, of the mask in tile order."""
    order = _tile_order(near.lattice, tile)  # type: ignore[arg-type]  # of two axes
    mask = near.matrix(len(order))[0, 0][order][:, order]
    area = tile[0] * tile[1]
    tiles = mask.view(len(order) // area, area, len(order) // area, area)
    return int(tiles.any(3).any(1).sum()), int(tiles.all(3).all(1).sum())


@check("gna", left_out={"GPU for speed": "no accelerator in this check: see `make bench`"})
def strided_neighborhoods() -> Claims:
    """Stride turns a sliding window into a blocked one, and never visits more tiles."""
    n, w = 48, 8
    place = torch.arange(n)
    q, k, v = (torch.randn(1, 2, n, 8) for _ in range(3))
    block = place[:, None] // w == place // w
    blocked = gap(attend(q, k, v, Neighborhood(w, (n,), stride=w)), _masked(q, k, v, block))
    start = (place - w // 2).clamp(0, n - w)[:, None]
    near = (place >= start) & (place < start + w)
    sliding = gap(attend(q, k, v, Neighborhood(w, (n,))), _masked(q, k, v, near))
    full = gap(attend(q, k, v, Neighborhood(n, (n,))), _masked(q, k, v, near | True))

    miscounted = simulated = worse = tried = 0
    for kernel in range(4, 17):
        mask = Neighborhood(kernel, (n,)).matrix(n)[0, 0]
        some = mask.view(n // 8, 8, n // 8, 8).any(3).any(1)
        counted = Neighborhood(kernel, (n,)).tiles(n, n, 8).state[0, 0] != EMPTY
        miscounted += int((some != counted).sum())
        plain = tile_visits(Neighborhood(kernel, (16, 16)), 4).visited
        for stride in (1, 2, 4):
            near = Neighborhood(kernel, (16, 16), stride=stride)
            found = tile_visits(near, 4)
            tried += 1
            simulated += (found.visited, found.used) == _counted(near, (4, 4))
            worse += found.visited > plain
    chosen = fastest_stride(Neighborhood(8, (16, 16)), 4)
    yield claim("s=w dividing n", "difference of the output", blocked).within(
        1e-5, "block-diagonal attention", because=FLOAT32
    )
    yield claim("s=1 equals brute-force", "difference of the output", sliding).within(
        1e-5, "neighborhoods counted out", because=FLOAT32
    )
    yield claim("w=n equals full", "difference of the output", full).within(
        1e-5, "full attention", because=CATALOGUE
    )
    yield claim("Simulator's tile count", "tiles miscounted of 13 windows", miscounted).equals(
        0, "the explicit mask's non-empty blocks"
    )
    yield claim(
        "Simulator's tile count", "settings of two axes simulated as counted", simulated
    ).equals(tried, "blocks of the explicit mask that hold pairs, and those that are full")
    yield claim(
        "a stride dividing", f"settings of {tried} where the stride added tiles", worse
    ).equals(0, "stride 1")
    yield claim(
        "a stride dividing",
        "tiles of the stride that the simulator chose",
        _counted(chosen, (4, 4))[0],
    ).below(_counted(Neighborhood(8, (16, 16)), (4, 4))[0], "stride 1, by the explicit mask")
