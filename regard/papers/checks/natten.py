"""Windows equal masks counted out by hand; every query meets exactly k per axis."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from regard.core.support import Neighborhood
from regard.core.tilemap import EMPTY
from regard.layers.attention import joined
from regard.layers.neighborhood import NeighborhoodAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.attending import dense
from regard.papers.shared.measure import gap
from regard.run.api import attend


def _along(n: int, k: int, d: int, causal: bool) -> Tensor:
    """Mask of one axis, counted out pair by pair as the paper says."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        group = range(i % d, n, d)  # the residue group of i
        place = group.index(i)
        if causal:
            keys = range(max(0, place - k + 1), place + 1)
        else:
            first = min(max(place - k // 2, 0), len(group) - k)
            keys = range(first, first + k)
        mask[i, [group[j] for j in keys]] = True
    return mask


@check("natten", left_out={"Speed claim": "no accelerator in this check: see `make bench`"})
def neighborhood() -> Claims:
    """Windows equal masks counted out by hand; every query meets exactly k per axis."""
    worst, folded, exact, cases = 0.0, 0.0, True, 0
    for sizes in ((13,), (7, 9), (4, 5, 6)):
        for k, d, causal in itertools.product((1, 3, 4), (1, 2), (False, True)):
            if any(k * d > n for n in sizes):
                continue
            mask = torch.ones(1, 1, dtype=torch.bool)
            for n in sizes:
                one = _along(n, k, d, causal)
                mask = (mask[:, None, :, None] & one[None, :, None, :]).flatten(0, 1).flatten(1)
            layer = NeighborhoodAttention(
                16, heads=2, grid=sizes, window=k, dilation=d, causal=causal
            )
            x = torch.randn(1, mask.shape[0], 16)
            wanted = dense(layer, x, mask)
            worst = max(worst, gap(layer(x), wanted))
            # A plan runs small ones dense, so the code for windows is asked for by name.
            seen = attend(layer.queries(x), *layer.keys(x), layer.rule(), executor="folded")
            folded = max(folded, gap(layer.to_out(joined(seen)), wanted))
            exact &= causal or bool((mask.sum(1) == k ** len(sizes)).all())
            cases += 1
    whole = NeighborhoodAttention(16, heads=2, grid=(6, 5), window=(6, 5))
    x = torch.randn(1, 30, 16)
    full = gap(whole(x), dense(whole, x, torch.ones(30, 30, dtype=torch.bool)))
    one = NeighborhoodAttention(16, heads=2, grid=(6, 5), window=1)
    value = gap(one(x), one.to_out(one.to_v(x)))
    # Keys that a tile of queries can meet lie within (tile + k - 1) on each axis.
    support, tile = Neighborhood(5, (96,)), 8
    state = support.tiles(96, 96, (tile, 1)).state
    widest = int((state != EMPTY).sum(-1).max())
    yield claim("Equality with masked", f"largest difference of {cases} cases", worst).within(
        1e-5, "attention under masks counted out by hand", because=CATALOGUE
    )
    yield claim(
        "Equality with masked", f"the same, {cases} cases by the windowed code", folded
    ).within(1e-5, "attention under masks counted out by hand", because=CATALOGUE)
    yield claim("Equality with masked", "every query has k^r keys", exact).equals(
        True, "where nothing is causal"
    )
    yield claim("k=n equals SDPA", "difference", full).within(
        1e-5, "torch's scaled_dot_product_attention", because=FLOAT32
    )
    yield claim("k=n equals SDPA", "difference of k = 1", value).within(
        1e-5, "the values", because=FLOAT32
    )
    yield claim("Score entries evaluated", "keys of a tile of 8, k = 5", widest).at_most(
        tile + 4, "tile + k - 1"
    )
