"""Checks of rows in which a query meets some of the keys."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.support import Neighborhood
from regard.core.tilemap import EMPTY
from regard.layers.attention import Attention, joined
from regard.layers.neighborhood import NeighborhoodAttention
from regard.layers.s2 import ShardedAttention
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.training import fit


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


def dense(layer: Attention, x: Tensor, mask: Tensor) -> Tensor:
    """Attend with the layer's weights under a written-out mask."""
    k, v = layer.keys(x)
    seen = F.scaled_dot_product_attention(layer.queries(x), k, v, mask, enable_gqa=True)
    mixed: Tensor = layer.to_out(joined(seen))
    return mixed


@check("natten")
def neighborhood() -> Measured:
    """Windows equal masks counted out by hand; every query meets exactly k per axis."""
    worst, exact, cases = 0.0, True, 0
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
            worst = max(worst, gap(layer(x), dense(layer, x, mask)))
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
    return Measured(
        "equal to dense attention under masks counted out by hand, for random n, k, d and causal "
        "axes in 1 to 3 dimensions; k^r keys each when not causal; k = n is full attention and "
        "k = 1 the values; a tile of queries meets at most (tile + k - 1) keys of an axis",
        worst < 1e-5 and exact and full < 1e-5 and value < 1e-5 and widest <= tile + 4,
        {"worst of cases": worst, "cases": cases, "k = n": full, "k = 1": value,
         "keys met by a tile of 8, k = 5": widest},
        left_out="speed, which is a claim about GPUs",
    )  # fmt: skip


@check("s2_attention")
def sharded() -> Measured:
    """Heads together cover the past; what is kept has the closed form; stride 1 is dense."""
    n, block, stride, local = 96, 4, 4, 2
    x = torch.randn(2, n, 64)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    one = ShardedAttention(64, heads=8, block=block, stride=1, local=local)
    same = gap(one(x), dense(one, x, causal))

    layer = ShardedAttention(64, heads=8, block=block, stride=stride, local=local)
    masks = layer.rule().support.matrix(n)[0]
    covered = bool(torch.equal(masks.any(0), causal))
    alike = ShardedAttention(64, heads=8, block=block, stride=stride, local=local, offsets=[0] * 8)
    uncovered = float((causal & ~alike.rule().support.matrix(n)[0].any(0)).sum() / causal.sum())
    memory, found = layer.memory(), []
    with torch.no_grad():
        for i in range(n):
            found.append(layer(x[:, i : i + 1], memory=memory))
            kept = memory.get("keys")
            kept.forget_each([s.horizon(i + 1) for s in layer.rule().support.supports])
    decoded = gap(torch.cat(found, 1), dense(layer, x, masks))
    # Of the blocks before the last `local`, one in `stride`; and the last `local` ones.
    now, blocks = n, n // block
    exact = []
    for h, support in enumerate(layer.rule().support.supports):
        shares = sum((j + h % stride) % stride == 0 for j in range(blocks - local + 1))
        wanted = block * (shares + local - 1)
        needed = support.horizon(now).holds(torch.arange(n)).sum()
        exact.append(int(needed) - wanted)
    copies = {name: _far_copy(offsets) for name, offsets in (("own", None), ("alike", [0] * 8))}
    return Measured(
        "stride 1 is dense causal attention; the heads' masks together are the causal mask; keys "
        "needed at decoding are one block in `stride` and the recent ones, and decoding with them "
        "equals the masked whole; heads of one offset leave pairs uncovered and fail to copy from "
        "far",
        max(same, decoded) < 1e-5 and covered and uncovered > 0.2 and max(map(abs, exact)) <= block
        and copies["own"] > 0.95 and copies["alike"] < 0.6,
        {"stride 1": same, "covered": covered, "uncovered, one offset": uncovered,
         "decoded": decoded, "keys off the closed form, at most": max(map(abs, exact)),
         "far copy": copies["own"], "far copy, one offset": copies["alike"]},
    )  # fmt: skip


def _far_copy(offsets: list[int] | None) -> float:
    """Accuracy of naming the token at a marked far place, after training."""
    torch.manual_seed(0)
    layer = ShardedAttention(
        64, heads=8, block=2, stride=4, local=1, offsets=offsets, qk_norm=torch.nn.RMSNorm
    )
    words, mark = torch.nn.Embedding(16, 64), torch.nn.Parameter(torch.randn(64))
    out = torch.nn.Linear(64, 16)

    def batch() -> tuple[Tensor, Tensor]:
        tokens, place = torch.randint(0, 16, (64, 33)), torch.randint(0, 30, (64,))
        marked = F.one_hot(place, 33)[..., None]
        x = words(tokens) + marked * mark
        x = torch.cat((x[:, :-1], mark.expand(64, 1, -1)), 1)
        return out(layer(x)[:, -1]), tokens.gather(1, place[:, None])[:, 0]

    def loss() -> Tensor:
        return F.cross_entropy(*batch())

    held = [*layer.parameters(), *words.parameters(), mark, *out.parameters()]
    fit(held, loss, 300)
    hits = [(s.argmax(-1) == w).float().mean() for s, w in (batch() for _ in range(8))]
    return float(torch.stack(hits).mean())
