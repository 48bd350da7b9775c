"""The simulator of tiles against the explicit mask of small lattices."""

from __future__ import annotations

import itertools

import pytest
import torch

import regard
from regard.analysis.tile_visits import fastest_stride, tile_visits
from regard.core import errors

CASES = [
    ((12,), 5, 1, 1, False, 4, 4),
    ((13,), 5, 1, 3, False, 4, 3),  # tiles at the end are smaller
    ((12,), 4, 1, 4, False, 4, 2),
    ((14,), 3, 2, 1, False, 4, 4),  # 7 tokens of each residue
    ((15,), 3, 3, 2, True, 2, 4),
    ((8, 6), (3, 5), 1, (1, 2), False, (4, 2), (2, 3)),
    ((8, 6), (3, 2), (2, 3), 1, (False, True), 2, 2),
    ((4, 6, 5), (3, 2, 5), 1, (2, 1, 3), False, 2, (2, 3, 2)),
]


def _boxes(near, tile):
    """Tiles of positions: residues apart, then boxes of a residue's tokens, the last ones cut."""
    axes = []
    for size, d, side in zip(near.lattice, near.dilation, tile, strict=True):
        runs = [range(r, size, d) for r in range(d)]
        axes.append([run[a : a + side] for run in runs for a in range(0, len(run), side)])
    found = []
    for box in itertools.product(*axes):
        places = []
        for cell in itertools.product(*box):
            position = 0
            for x, size in zip(cell, near.lattice, strict=True):
                position = position * size + x
            places.append(position)
        found.append(places)
    return found


@pytest.mark.parametrize(("lattice", "kernel", "dilation", "stride", "causal", "q", "k"), CASES)
def test_counts_are_those_of_the_mask(lattice, kernel, dilation, stride, causal, q, k):
    near = regard.Neighborhood(kernel, lattice, dilation, stride, causal)
    n = torch.Size(lattice).numel()
    mask = near.matrix(n)[0, 0]
    found = tile_visits(near, q, k)
    visited = used = 0
    sides = [(x,) * len(lattice) if isinstance(x, int) else x for x in (q, k)]
    for rows in _boxes(near, sides[0]):
        for cols in _boxes(near, sides[1]):
            block = mask[rows][:, cols]
            visited += bool(block.any())
            used += bool(block.all())
    assert (found.visited, found.used) == (visited, used)
    assert (found.pairs, found.all_pairs) == (int(mask.sum()), n * n)
    assert found.block_sparse == (visited == used)
    total = 1
    for size, a, b in zip(lattice, *sides, strict=True):
        total *= -(-size // a) * -(-size // b)
    assert found.total == total


def test_blocks_waste_nothing_and_full_windows_gain_nothing():
    blocks = tile_visits(regard.Neighborhood(4, (16, 16), stride=4), 4)
    assert blocks.block_sparse
    assert blocks.speed_up == blocks.bound == 16
    full = tile_visits(regard.Neighborhood(16, (16, 16)), 4)
    assert full.block_sparse
    assert full.speed_up == full.bound == 1


@pytest.mark.parametrize("kernel", [(4, 8), (5, 6)])
@pytest.mark.parametrize("causal", [False, True])
def test_no_stride_visits_fewer_tiles_than_the_fastest(kernel, causal):
    lattice, tile = (16, 16), (4, 2)
    every = {
        stride: tile_visits(
            regard.Neighborhood(kernel, lattice, stride=stride, causal=causal), tile, 4
        ).visited
        for stride in itertools.product(*(range(1, k + 1) for k in kernel))
    }
    chosen = fastest_stride(regard.Neighborhood(kernel, lattice, causal=causal), tile, 4)
    assert every[chosen.stride] == min(every.values())
    assert chosen.stride == min(s for s, count in every.items() if count == min(every.values()))


def test_other_supports_are_refused():
    with pytest.raises(errors.ShapeError, match="Neighborhood"):
        tile_visits(regard.Window(3), 4)
    with pytest.raises(errors.RuleError):
        tile_visits(regard.Neighborhood(3, (8, 8)), (4, 4, 4))
