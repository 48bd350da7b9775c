"""Passes of keys or queries around a ring, and the return of their gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.partial import wide
from regard.schemes.messages import Waiting
from regard.schemes.part_gradients import part_grads
from regard.schemes.scheme import queries_of, work
from regard.schemes.sharded_keys import ShardedKeys

KEYS, BACK = 0, 1  # lanes
# Gradients that may be on their way home while the next ones are computed. Those of every rank at
# once would take as much memory as the gradients of all keys.
ON_THEIR_WAY = 1


class Back:
    """Inputs of the backward of a ring: tensors of the forward, and gradients of its output."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, learned: tuple[Tensor, ...], d_out: Tensor,
        lse: Tensor | None, d_row: Tensor | None, number: int, out: Tensor | None = None,
    ) -> None:  # fmt: skip
        # The number of the forward call: others may have run since.
        self.number = number
        self.q, self.k, self.v, self.learned = q, k, v, learned
        self.d_out, self.lse, self.d_row = d_out, lse, d_row
        # The output, where only it has a gradient.
        self.out = out
        self.dq, self.dk, self.dv = (torch.zeros_like(x, dtype=wide(x.dtype)) for x in (q, k, v))
        self.d_learned = [torch.zeros_like(x) for x in learned]

    def grads(self) -> list[Tensor]:
        """Return all gradients, each in the dtype of its tensor."""
        found = zip((self.dq, self.dk, self.dv), (self.q, self.k, self.v), strict=True)
        return [*(x.to(like.dtype) for x, like in found), *self.d_learned]


def passing(
    call: Call, keys: ShardedKeys, k: Tensor, v: Tensor, number: int | None = None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield the needed keys of each rank, nearest first: (rank, k, v, positions)."""
    peers, needed = keys.peers, work(call, keys).needed
    (b, g, _, d), e = k.shape, v.shape[3]

    def post(step: int) -> tuple[Waiting, Tensor]:
        to, source = (peers.rank + step) % peers.world, (peers.rank - step) % peers.world
        slots = needed[to][peers.rank]
        sent = torch.cat((_rows(k, slots).flatten(), _rows(v, slots).flatten()))
        got = k.new_empty(b * g * len(needed[peers.rank][source]) * (d + e))
        back = number is not None
        what = f"step {step} of {'the backward of ' * back}ring"
        return peers.exchange(
            {to: sent}, {source: got}, what, lane=KEYS + 4 * back, call=number
        ), got

    coming = post(1) if peers.world > 1 else None
    for step in range(peers.world):
        source = (peers.rank - step) % peers.world
        slots = needed[peers.rank][source]
        if step == 0:
            own_k, own_v = _rows(k, slots), _rows(v, slots)
        else:
            assert coming is not None
            coming[0].wait()
            got, c = coming[1], len(slots)
            coming = post(step + 1) if step + 1 < peers.world else None
            own_k = got[: b * g * c * d].view(b, g, c, d)
            own_v = got[b * g * c * d :].view(b, g, c, e)
        yield source, own_k, own_v, keys.layout.positions(source)[slots]


def _rows(x: Tensor, slots: Tensor) -> Tensor:
    """Return some rows of x [b, g, c, d], in ascending order: x itself if they are all."""
    return x if len(slots) == x.shape[2] else x[:, :, slots.to(x.device)]


def _add(whole: Tensor, slots: Tensor, part: Tensor | None) -> None:
    """Add the gradient of some rows of x [b, g, c, d]."""
    if part is not None and len(slots) == whole.shape[2]:
        whole += part
    elif part is not None:
        whole.index_add_(2, slots.to(whole.device), part.to(whole.dtype))


def _learn(back: Back, found: list[Tensor | None]) -> None:
    for whole, part in zip(back.d_learned, found, strict=True):
        if part is not None:
            whole += part


def keys_travel(call: Call, keys: ShardedKeys, back: Back) -> list[Tensor]:
    """Pass the keys again, and return their gradients to their owners.

    A rank computes part of its own keys first, while those of the next rank arrive, and the rest
    last, while the last gradients travel.
    """
    peers, needed = keys.peers, work(call, keys).needed
    i = queries_of(keys).positions(peers.rank)
    home: list[tuple[Waiting, Tensor, Tensor]] = []
    (b, g, _, d), e = back.k.shape, back.v.shape[3]

    def grads_of(k: Tensor, v: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of some keys and values, and accumulate those of the queries."""
        if not len(i) or not len(j):
            return torch.zeros_like(k), torch.zeros_like(v)
        dq, dk, dv, *rest = part_grads(
            call.rule, back.q, k, v, i, j, keys.real, back.d_out, back.lse, back.d_row,
            back.learned, back.out,
        )  # fmt: skip
        if dq is not None:
            back.dq += dq
        _learn(back, rest)
        return (
            torch.zeros_like(k) if dk is None else dk,
            torch.zeros_like(v) if dv is None else dv,
        )

    def own_part(some: slice, k: Tensor, v: Tensor, j: Tensor) -> None:
        slots = needed[peers.rank][peers.rank][some]
        dk, dv = grads_of(k[:, :, some], v[:, :, some], j[some])
        _add(back.dk, slots, dk)
        _add(back.dv, slots, dv)

    def come_home(waiting: Waiting, got: Tensor, slots: Tensor) -> None:
        waiting.wait()
        cut = b * g * len(slots) * d
        _add(back.dk, slots, got[:cut].view(b, g, -1, d) if len(slots) else None)
        _add(back.dv, slots, got[cut:].view(b, g, -1, e) if len(slots) else None)

    rest: tuple[slice, Tensor, Tensor, Tensor] | None = None
    for step, (source, k, v, j) in enumerate(passing(call, keys, back.k, back.v, back.number)):
        if step == 0:
            cut = _gap(j) if peers.world > 1 else len(j)
            own_part(slice(0, cut), k, v, j)
            rest = (slice(cut, len(j)), k, v, j) if cut < len(j) else None
            continue
        dk, dv = grads_of(k, v, j)
        to = (peers.rank + step) % peers.world
        slots = needed[to][peers.rank]
        got = back.k.new_empty(b * g * len(slots) * (d + e))
        sent = torch.cat((dk.flatten(), dv.flatten())).to(back.k.dtype)
        what = f"step {step} of the backward of ring"
        waiting = peers.exchange({source: sent}, {to: got}, what, lane=BACK, call=back.number)
        home.append((waiting, got, slots))
        if len(home) > ON_THEIR_WAY:
            come_home(*home.pop(0))
    if rest is not None:
        own_part(*rest)
    for one in home:
        come_home(*one)
    return back.grads()


def _gap(j: Tensor) -> int:
    """Return where to cut sorted positions in two: at the middle gap between runs."""
    gaps = ((j.diff() != 1).nonzero().flatten() + 1).tolist()
    return int(min(gaps, key=lambda x: abs(2 * x - len(j)))) if gaps else len(j)


def queries_travel(call: Call, keys: ShardedKeys, back: Back) -> list[Tensor]:
    """Pass the queries around the ring, and return their gradients to their owners."""
    peers, ranks = keys.peers, work(call, keys)
    layout, full = queries_of(keys), wide(back.q.dtype)
    (b, h, _, d), e = back.q.shape, back.v.shape[3]
    rows = [] if back.lse is None or back.d_row is None else [back.lse, back.d_row]
    home: list[tuple[Waiting, Tensor, Tensor]] = []

    def packed(slots: Tensor) -> list[Tensor]:
        here = slots.to(back.q.device)
        wide_rows = [x[:, :, here].flatten().to(full) for x in rows]
        given = [torch.cat((back.q[:, :, here].flatten(), back.d_out[:, :, here].flatten()))]
        return given + ([torch.cat(wide_rows)] if rows else [])

    def post(step: int) -> tuple[list[Waiting], list[Tensor]]:
        to, source = (peers.rank + step) % peers.world, (peers.rank - step) % peers.world
        c, what = len(ranks.asking[source][peers.rank]), f"step {step} of the backward of burst"
        got = [back.q.new_empty(b * h * c * (d + e))]
        got += [back.q.new_empty(b * h * c * 2, dtype=full)] if rows else []
        given = packed(ranks.asking[peers.rank][to])
        return [
            peers.exchange({to: x}, {source: y}, what, lane=lane + 2, call=back.number)
            for lane, (x, y) in enumerate(zip(given, got, strict=True))
        ], got

    def come_home(waiting: Waiting, mine: Tensor, asks: Tensor) -> None:
        waiting.wait()
        _add(back.dq, asks, mine.view(b, h, -1, d) if len(asks) else None)

    coming = post(1) if peers.world > 1 else None
    for step in range(peers.world):
        to, source = (peers.rank + step) % peers.world, (peers.rank - step) % peers.world
        asks, asked = ranks.asking[peers.rank][to], ranks.asking[source][peers.rank]
        what, c = f"step {step} of the backward of burst", len(asked)
        if step:
            assert coming is not None
            for waiting in coming[0]:
                waiting.wait()
            got = coming[1]
            coming = post(step + 1) if step + 1 < peers.world else None
        else:
            got = packed(asks)
        q = got[0][: b * h * c * d].view(b, h, c, d) if c else back.q[:, :, :0]
        dq = torch.zeros_like(q)
        slots = ranks.needed[source][peers.rank]
        if c and len(slots):
            d_out = got[0][b * h * c * d :].view(b, h, c, e)
            lse, d_row = got[1].view(2, b, h, c) if rows else (None, None)
            some = slots.to(back.k.device)
            i, j = layout.positions(source)[asked], keys.layout.positions(peers.rank)[slots]
            found_q, dk, dv, *rest = part_grads(
                call.rule, q, back.k[:, :, some], back.v[:, :, some], i, j, keys.real, d_out, lse,
                d_row, back.learned,
            )  # fmt: skip
            dq = dq if found_q is None else found_q
            _add(back.dk, slots, dk)
            _add(back.dv, slots, dv)
            _learn(back, rest)
        if not step:
            _add(back.dq, asks, dq)
            continue
        mine = back.q.new_empty(b * h * len(asks) * d)
        sent = dq.to(back.q.dtype).flatten()
        home.append(
            (
                peers.exchange({source: sent}, {to: mine}, what, lane=BACK, call=back.number),
                mine,
                asks,
            )
        )
        if len(home) > ON_THEIR_WAY:
            come_home(*home.pop(0))
    for one in home:
        come_home(*one)
    return back.grads()
