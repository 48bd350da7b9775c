"""Stride turns a sliding window into a blocked one, and never visits more tiles."""

from __future__ import annotations

import torch
from torch import Tensor

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


def _visited(kernel: int, stride: int, lattice: tuple[int, int], tile: tuple[int, int]) -> int:
    """Count tile pairs that hold some allowed pair, by the explicit mask in tile order."""
    order = _tile_order(lattice, tile)
    mask = Neighborhood(kernel, lattice, stride=stride).matrix(len(order))[0, 0][order][:, order]
    area = tile[0] * tile[1]
    tiles = len(order) // area
    return int(mask.view(tiles, area, tiles, area).any(3).any(1).sum())


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

    miscounted = worse = tried = 0
    fewest = 1.0
    for kernel in range(4, 17):
        mask = Neighborhood(kernel, (n,)).matrix(n)[0, 0]
        some = mask.view(n // 8, 8, n // 8, 8).any(3).any(1)
        counted = Neighborhood(kernel, (n,)).tiles(n, n, 8).state[0, 0] != EMPTY
        miscounted += int((some != counted).sum())
        lattice, tile = (16, 16), (4, 4)
        plain = _visited(kernel, 1, lattice, tile)
        for stride in (2, 4):
            strided = _visited(kernel, stride, lattice, tile)
            tried += 1
            worse += strided > plain
            fewest = min(fewest, strided / plain)
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
        "a stride dividing", f"settings of {2 * 13} where the stride added tiles", worse
    ).equals(0, "stride 1")
