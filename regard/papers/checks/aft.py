"""Kinds of AFT meet where they should, and averages stay within the values."""

from __future__ import annotations

import torch

from regard.layers.attention import joined
from regard.layers.attention_free import (
    AttentionFree,
    ConvolvedAttentionFree,
    LatticeAttentionFree,
    LocalAttentionFree,
    SimpleAttentionFree,
)
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.linear_cost import decode_bytes, scene_of
from regard.papers.shared.measure import gap


def _lattice_gap() -> float:
    """Difference of the convolution over a grid from the full form that has its numbers."""
    grid, n = (4, 5), 20
    x, place = torch.randn(2, n, 16), torch.cartesian_prod(torch.arange(4), torch.arange(5))
    conv = LatticeAttentionFree(16, heads=16, grid=grid, window=3)
    full = AttentionFree(16, longest=n, rank=n)
    state = {name: w for name, w in conv.state_dict().items() if name in full.state_dict()}
    full.load_state_dict(state, strict=False)
    with torch.no_grad():
        conv.kernels.copy_(conv.kernels[:1].expand(16, -1))
        taps = conv.kernels[0] - conv.kernels[0].mean()
        taps = (taps / conv.kernels[0].std() * 0.1).view(5, 5)
        apart = place - place[:, None]  # [query, key, axis]
        near = (apart.abs() <= 2).all(-1)  # because: a window of 3 reaches two cells
        at = (apart + 2).clamp(0, 4)
        full.of_place[0] = torch.where(near, taps[at[..., 0], at[..., 1]], 0.0)
        full.of_place[1] = torch.eye(n)
    return gap(conv(x), full(x))


@check("aft")
def attention_free() -> Claims:
    """Kinds of AFT meet where they should, and averages stay within the values."""
    x = torch.randn(2, 14, 16)
    full = AttentionFree(16, longest=14, rank=14, causal=True)
    state = {n: w for n, w in full.state_dict().items() if n != "of_place"}
    conv = ConvolvedAttentionFree(16, heads=16, window=4, causal=True)
    conv.load_state_dict(state, strict=False)
    with torch.no_grad():
        conv.kernels.copy_(conv.kernels[:1].expand(16, -1))
        table = conv.score().steps[0].table[0]
        apart = torch.arange(14) - torch.arange(14)[:, None]
        toeplitz = table[apart.clamp(-4, 4) + 4]
        full.of_place[0] = toeplitz
        full.of_place[1] = torch.eye(14)
    toeplitz_gap = gap(conv(x), full(x))
    lattice_gap = _lattice_gap()
    local = LocalAttentionFree(16, longest=14, window=14, rank=14, causal=True)
    local.load_state_dict(full.state_dict())
    wide = gap(local(x), full(x))
    simple = SimpleAttentionFree(16)
    simple.load_state_dict(state)
    with torch.no_grad():
        full.of_place.zero_()
    zero = gap(full(x), simple(x))
    k, v = simple.to_k(x), simple.to_v(x)
    weights = k.exp().cumsum(1)
    by_hand = (k.exp() * v).cumsum(1) / weights
    written = gap(simple(x), simple.to_out(simple.to_q(x).sigmoid() * by_hand))
    seen = full.look(full.call(scene_of(x)), scene_of(x))
    seen = joined(seen)
    above, below = v.cummax(1).values + 1e-5, v.cummin(1).values - 1e-5
    inside = bool(((below <= seen) & (seen <= above)).all())
    held = [decode_bytes(simple, n) for n in (4, 64)]
    yield claim("conv form equals", "difference from the full form", toeplitz_gap).within(
        1e-5, "the full form with Toeplitz numbers", because=CATALOGUE
    )
    yield claim("conv form equals", "the same over a grid of 4 x 5, in 2-D", lattice_gap).within(
        1e-5, "the full form with the numbers of the offsets", because=CATALOGUE
    )
    yield claim("w=0 equals simple", "difference from the simple form", zero).within(
        1e-5, "the simple form", because=FLOAT32
    )
    yield claim("s>=T local", "difference from the full form", wide).within(
        1e-5, "the full form", because=FLOAT32
    )
    yield claim("outputs bounded", "averages within the least and largest value", inside).equals(
        True, "a weighted mean"
    )
    yield claim("prefix streaming", "difference of running sums from the whole", written).within(
        1e-5, "the batch form", because=FLOAT32
    )
    yield claim("memory of AFT-simple", "bytes after 64 tokens", held[1]).equals(
        held[0], "bytes after 4"
    )
