"""Structured supports folded into the batch of dense attention.

Windows, sinks, lattices, dilation, documents, chosen tiles, and whatever else leaves tiles out.

Every tile of queries attends densely to just the tiles of keys it may meet. Nothing is compiled,
gradients work on any device, and no matrix of all pairs exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

from regard.core.autocast import without_autocast
from regard.core.call import Call
from regard.core.partial import Partial, merge, wide
from regard.core.readable import can_be_read
from regard.core.support.chosen import asks_for_more
from regard.core.tilemap import EMPTY, PARTIAL, RunMap, TileMap
from regard.run import dense_kernels
from regard.run.cutting import tile_size
from regard.run.executor import LAUNCH, Answer, Cost, Executor, No, Yes
from regard.run.folding import LOOK_ENTRIES, Fold, Group, make_fold
from regard.run.fused import pattern, product, why_not_product
from regard.run.isolation import contained
from regard.run.pieces import Piecewise
from regard.run.transforms import Transforms, no_second_derivative

# Bytes of keys and values gathered at a time, so that they stay in the cache.
GATHERED = 1 << 24
# Tiles of a map that is written out, at most; what is asked about each takes several times as much.
MAP_TILES = 1 << 26


class Folded(Executor):
    """Fold a support into dense pieces and merge them."""

    name = "folded"
    transforms = Transforms.NONE

    def can(self, call: Call) -> Answer:
        """Anything elementwise whose support leaves out tiles, with tokens in a row."""
        if not can_be_read(call.q):
            return No("looks into the mask, which cannot be read here")
        if call.placed:
            return No("tokens stand at positions of their own")
        if call.dropout:
            return No("drops no weights")
        if call.rule.score.needs_row:
            return No(f"{call.rule.score} needs whole rows of scores")
        if call.n < 2 or call.m == 0:
            return No("a single query has nothing to fold")
        if pattern(call) is not None:
            return No("every pair meets, or all the past: there is nothing to fold")
        if asks_for_more(call.rule.support, call.q.device):
            return No("a function asks for the batch row or the head, and one fold serves them all")
        batch, heads = call.rule.support.extent()
        if batch * heads > 256:
            return No(f"the support differs for {batch * heads} rows and heads (limit 256)")
        tiles = _tiles(call)
        if tiles is None:
            return No(f"its map of tiles would have more than {MAP_TILES:,} of them")
        partial = tiles.most(PARTIAL) * prod(tiles.size)
        # Where only distances matter, tiles that stand alike are asked about once.
        if partial > LOOK_ENTRIES and call.rule.support.anchor() is None:
            return No(f"{partial:,} pairs lie in tiles that are only partly met")
        return Yes("" if not why_not_product(call) else "piece by piece, in plain operations")

    def cost(self, call: Call) -> Cost:
        """Pairs in tiles that are not empty."""
        tiles = _tiles(call)
        if isinstance(tiles, RunMap):  # to fold it is for those who run it
            met = tiles.shape[2] * tiles.shape[3] - tiles.count(EMPTY)
            pairs, made, groups, side = float(met * prod(tiles.size)), 1, 4, tiles.size[0]
        else:
            found = folds(call)
            fold, made = found[0][2], len(found)
            pairs, side = float(fold.pairs), fold.size[0]
            groups = sum(len(layer) for layer in fold.layers)
        pairs *= call.b * call.h
        size = call.q.element_size()
        moved = size * (2 * call.q.numel() + pairs / side * (call.d + call.e))
        slowness = 1.5 if not why_not_product(call) else 6.0
        # Each group is a kernel launch with some Python around it.
        launches = groups * made * call.b * LAUNCH
        return Cost(2.0 * pairs * (call.d + call.e) + launches, moved, size * pairs / 64, slowness)

    def run(self, call: Call) -> Partial:
        """Run every fold and put the rows and heads together."""
        return contained(call, self._run)

    def _run(self, call: Call) -> Partial:
        if why_not_product(call):
            return Piecewise(call, folds(call)).run()
        q, k, scale = product(call)
        work = Work(scale, tuple(folds(call)), call.g)
        out, lse = _Folded.apply(q, k, call.v, work)  # type: ignore[no-untyped-call]
        return Partial(out, lse)


def _tiles(call: Call) -> TileMap | None:
    """Return the tile map of a call, or None where it would be too large to write out."""
    support, size = call.rule.support, tile_size(call.rule.support)
    batch, heads = support.extent()
    area = -(-call.n // size[0]) * -(-call.m // size[1])
    if batch * heads * area > MAP_TILES and (batch * heads > 1 or not support.in_runs):
        return None
    return call.rule.tiles(call.n, call.m, size, device=call.q.device)


def folds(call: Call) -> list[tuple[slice, slice, Fold]]:
    """Fold a call: (rows of the batch, query heads, fold) for each that differs."""
    key = ("folds", call.n, call.m, call.rule.offset, str(call.q.device))
    return call.rule.support.memo(key, lambda: _folds(call))


def _folds(call: Call) -> list[tuple[slice, slice, Fold]]:
    batch, heads = call.rule.support.extent()
    found = []
    for b in range(batch):
        for h in range(heads):
            rows = slice(None) if batch == 1 else slice(b, b + 1)
            some = slice(None) if heads == 1 else slice(h, h + 1)
            found.append((rows, some, make_fold(call, b, h)))
    return found


class Work(NamedTuple):
    """What is to be done, apart from the tensors."""

    scale: float
    folds: tuple[tuple[slice, slice, Fold], ...]
    g: int


class Slab(NamedTuple):
    """Some units of a group with their tensors: q [u, h, q, d], k, v [u, g, c k, d], mask."""

    group: Group
    units: slice
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None


class _Folded(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, work: Work) -> tuple[Tensor, Tensor]:
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        lse = torch.empty(q.shape[:3], dtype=wide(q.dtype), device=q.device)
        if not all(fold.complete for _, _, fold in work.folds):
            out.zero_(), lse.fill_(-torch.inf)
        for one in _rows_and_heads(q, k, v, work):
            _forward(one, work.scale, out[one.b, one.h], lse[one.b, one.h])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.work = work
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if torch.is_grad_enabled():
            no_second_derivative("folded")
        dtype, once = wide(q.dtype), all(heads == slice(None) for _, heads, _ in ctx.work.folds)
        make = torch.empty if once else torch.zeros
        grads = [make(x.shape, dtype=dtype, device=q.device) for x in (q, k, v)]
        with without_autocast(q.device):
            for one in _rows_and_heads(q, k, v, ctx.work):
                rows = [x[one.b, one.h] for x in (d_out, d_lse, out, lse)]
                if q.device.type == "cpu":
                    # Over pieces of few queries the kernel takes twice as long in half precision.
                    one, rows = one.to(dtype), [x.to(dtype) for x in rows]
                pulled = _backward(one, ctx.work.scale, *rows)
                for grad, own, heads in zip(grads, pulled, (one.h, one.g, one.g), strict=True):
                    if once:
                        grad[one.b] = own
                    else:
                        grad[one.b, heads] += own
        return (*(x.to(q.dtype) for x in grads), None)


class One(NamedTuple):
    """One row of the batch and the heads that share a fold: q [h, n, d], k, v [g, m, d].

    q, k and v are in the order of the fold and filled up to whole tiles; `m` keys are real.
    """

    m: int
    b: int
    h: slice
    g: slice
    fold: Fold
    q: Tensor
    k: Tensor
    v: Tensor

    def to(self, dtype: torch.dtype) -> One:
        """Return the same in another precision."""
        return self._replace(q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))


def _rows_and_heads(q: Tensor, k: Tensor, v: Tensor, work: Work) -> Iterator[One]:
    share = q.shape[1] // work.g
    for rows, heads, fold in work.folds:
        keys = (
            slice(None)
            if heads == slice(None)
            else slice(heads.start // share, heads.start // share + 1)
        )
        for b in range(*rows.indices(q.shape[0])):
            qs = _arranged(q[b, heads], fold.order_q, fold.size[0])
            ks, vs = (_arranged(x[b, keys], fold.order_k, fold.size[1]) for x in (k, v))
            yield One(k.shape[2], b, heads, keys, fold, qs, ks, vs)


def _arranged(x: Tensor, order: Tensor | None, side: int) -> Tensor:
    """Put x [h, n, d] in order and fill it up to whole tiles."""
    x = x if order is None else x.index_select(1, order)
    short = -x.shape[1] % side
    return pad(x, (0, 0, 0, short)) if short else x


def _restored(x: Tensor, order: Tensor | None, n: int) -> Tensor:
    """Undo `_arranged` for x [h, n or more, ...]."""
    x = x[:, :n]
    return x if order is None else torch.empty_like(x).index_copy_(1, order, x)


def _parts(one: One, group: Group, *, views_too: bool = False) -> Iterator[slice]:
    """Cut the units of a group into parts whose keys and values fit the cache.

    Views need no cutting forward; backward their gradients are copies (`views_too`).
    """
    count, wide_keys = len(group.units), group.width
    row = one.k.shape[0] * wide_keys * (one.k.shape[-1] + one.v.shape[-1]) * one.k.element_size()
    at_once = max(1, GATHERED // row)
    if group.regular is not None and not views_too:
        at_once = count
    for start in range(0, count, at_once):
        yield slice(start, min(start + at_once, count))


def _slab(one: One, group: Group, part: slice) -> Slab:
    """Return some units of a group with their tensors: views where they are regular, else copies.

    What a slab holds is freed before the next is made, if its caller returns in between.
    """
    side_q, side_k = one.fold.size
    if group.regular is not None:
        unit, step, key, key_step = group.regular
        here = part.stop - part.start
        q = _strided(one.q, (unit + part.start * step) * side_q, step * side_q, here, side_q)
        first = (key + part.start * key_step) * side_k
        k, v = (_strided(x, first, key_step * side_k, here, group.width) for x in (one.k, one.v))
    else:
        if group.rows is None:
            q = _gathered(one.q, group.units[part, None], side_q)
        else:
            unit, step = group.rows
            here, first = part.stop - part.start, (unit + part.start * step) * side_q
            q = _strided(one.q, first, step * side_q, here, side_q)
        k, v = (_gathered(x, group.keys[part], side_k) for x in (one.k, one.v))
    mask = group.mask
    if mask is not None:
        mask = mask if len(mask) == 1 else mask[part]
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(
            ~mask, -torch.inf
        )
    return Slab(group, part, q, k, v, mask)


def _strided(x: Tensor, start: int, step: int, count: int, length: int) -> Tensor:
    """View x [h, n, d] as [count, h, length, d], every `step` places a piece."""
    h, _, d = x.shape
    over_h, over_n, over_d = x.stride()
    where = x.storage_offset() + start * over_n
    return x.as_strided((count, h, length, d), (step * over_n, over_h, over_n, over_d), where)


def _gathered(x: Tensor, tiles: Tensor, side: int) -> Tensor:
    """Copy tiles [u, c] of x [h, n, d] together: [u, h, c side, d]."""
    h, _, d = x.shape
    cut = x.unflatten(1, (-1, side))  # [h, t, side, d]
    found: Tensor = cut[:, tiles.flatten()].view(h, *tiles.shape, side, d)
    return found.transpose(0, 1).flatten(2, 3)


def _forward(one: One, scale: float, out: Tensor, lse: Tensor) -> None:
    """Write out [h, n, e] and lse [h, n] of one row; where no key is met they are left alone."""
    side = one.fold.size[0]
    direct = one.fold.order_q is None and out.shape[1] == one.q.shape[1]
    # Results are written where they belong if places are positions, and moved there if not.
    outs = out if direct else out.new_zeros(*one.q.shape[:2], out.shape[2])
    lses = lse if direct else lse.new_full(one.q.shape[:2], -torch.inf)
    out_tiles, lse_tiles = outs.unflatten(1, (-1, side)), lses.unflatten(1, (-1, side))
    for depth, layer in enumerate(one.fold.layers):
        for group in layer:
            for part in _parts(one, group):
                _attend(_slab(one, group, part), scale, depth, out_tiles, lse_tiles)
    if not direct:
        out.copy_(_restored(outs, one.fold.order_q, out.shape[1]))
        lse.copy_(_restored(lses, one.fold.order_q, out.shape[1]))


def _attend(slab: Slab, scale: float, depth: int, out: Tensor, lse: Tensor) -> None:
    """Write the results of a slab into tiles out [h, t, q, e], lse [h, t, q]; merge them below."""
    got = dense_kernels.forward(slab.q, slab.k, slab.v, dense_kernels.Shape(scale), slab.mask)
    made = Partial(got[0].transpose(0, 1), got[1].transpose(0, 1))
    units = _units(slab.group, slab.units)
    if depth:
        made = merge(Partial(out[:, units], lse[:, units]), made)
    assert made.lse is not None
    out[:, units], lse[:, units] = made.out, made.lse


def _units(group: Group, part: slice) -> slice | Tensor:
    """Query tiles of a slab: a slice where they are regular, since writing to a slice is cheap."""
    if group.rows is None:
        return group.units[part]
    first, step = group.rows
    return slice(first + part.start * step, first + (part.stop - 1) * step + 1, step)


def _backward(
    one: One, scale: float, d_out: Tensor, d_lse: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq [h, n, d], dk, dv [g, m, d] of one row, summed over the pieces."""
    fold, (side_q, side_k) = one.fold, one.fold.size
    rows = [
        _arranged(x if x.dim() == 3 else x[..., None], fold.order_q, side_q)
        .unflatten(1, (-1, side_q))
        .transpose(0, 1)
        for x in (d_out, d_lse, out, lse)
    ]
    dtype = wide(one.q.dtype)
    # Tiles first, over memory in which heads are: to put them together again copies nothing.
    dq, dk, dv = (
        torch.zeros(
            x.shape[0], x.shape[1] // s, s, x.shape[2], dtype=dtype, device=x.device
        ).transpose(0, 1)
        for x, s in ((one.q, side_q), (one.k, side_k), (one.v, side_k))
    )
    for layer in fold.layers:
        for group in layer:
            for part in _parts(one, group, views_too=True):
                _pull(_slab(one, group, part), scale, rows, (dq, dk, dv), side_k)
    n = d_out.shape[1]
    back = _restored(dq.transpose(0, 1).flatten(1, 2), fold.order_q, n)
    keys = [_restored(x.transpose(0, 1).flatten(1, 2), fold.order_k, one.m) for x in (dk, dv)]
    return back, keys[0], keys[1]


def _pull(
    slab: Slab, scale: float, rows: list[Tensor], totals: tuple[Tensor, ...], side: int
) -> None:
    """Add the gradients of a slab to tiles of dq, dk, dv; rows are d_out, d_lse, out, lse."""
    units = _units(slab.group, slab.units)
    own = [x[units] for x in rows]
    got = dense_kernels.backward(
        own[0],
        own[1][..., 0],
        slab.q,
        slab.k,
        slab.v,
        own[2],
        own[3][..., 0].contiguous(),
        dense_kernels.Shape(scale),
        slab.mask,
    )
    totals[0][units] += got[0]
    for total, x in zip(totals[1:], got[1:], strict=True):
        _add_tiles(total, slab.group, slab.units, x, side)


def _add_tiles(total: Tensor, group: Group, units: slice, x: Tensor, side: int) -> None:
    """Add x [u, g, width, d] to the tiles [t, g, side, d] that it came from."""
    short = -x.shape[2] % side
    x = (pad(x, (0, 0, 0, short)) if short else x).unflatten(2, (-1, side))  # a pad of 0 copies
    if group.regular is None and group.columns is not None:
        # From the last column on, one unit after the other adds to a tile: as by `index_add_`.
        for c in reversed(range(x.shape[2])):
            first, step = group.columns[c]
            start = first + units.start * step
            total[start : start + (len(x) - 1) * step + 1 : step] += x[:, :, c]
        return
    if group.regular is None:
        keys = group.keys[units].flatten()
        total.index_add_(0, keys, x.transpose(1, 2).flatten(0, 1).to(total.dtype))
        return
    step = group.regular[3]
    first = group.regular[2] + units.start * step
    if step == 0:  # every unit met the same tiles
        x = x.sum(0, keepdim=True, dtype=total.dtype)
    for c in range(x.shape[2]):
        start = first + c
        total[start : start + (len(x) - 1) * step + 1 : max(step, 1)] += x[:, :, c]
