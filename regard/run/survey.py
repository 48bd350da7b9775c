"""Survey attention in one pass over blocks of rows: O(n) memory, whole rows at a time.

Scores of a block of queries with all keys they may meet fit the cache, so the softmax of a row is
known when its scores are, and every reducer reads the block while it is hot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.autocast import without_autocast
from regard.core.call import Call
from regard.core.errors import ExecutorError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.heads import expand_heads
from regard.core.partial import wide
from regard.core.rule import Rule
from regard.core.score.base import At, Change
from regard.core.support.chosen import asks_for_more
from regard.core.survey import FIELDS, Survey, need_wants
from regard.core.tilemap import EMPTY, FULL
from regard.core.weigh import Softmax
from regard.run.api import RuleLike
from regard.run.counting import bytes_of, count
from regard.run.executor import No
from regard.run.fused import product, why_not_product
from regard.run.isolation import one_dtype
from regard.run.reducers import Reducer, make_reducers
from regard.run.runner import surveyed
from regard.run.triton.availability import why_not_here

# A block has about this many scores: with their exponentials they stay in the cache. But a product
# of fewer rows than these costs more than what the cache saves.
SCORES, LEAST_ROWS = 1 << 19, 64
# Stands for -inf where 0 x -inf would be no number.
REMOVED = -1e30


def survey(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    rule: RuleLike = None,
    want: Sequence[str] = ("entropy", "received", "tiles"),
    *,
    sets: Mapping[str, Tensor | Sequence[int]] | None = None,
    sinks: Sequence[int] = (),
    tile: int = 64,
    top: int = 8,
    near: int = 32,
    q_positions: Tensor | None = None,
    k_positions: Tensor | None = None,
    reducers: Sequence[Reducer] = (),
    progress: Callable[[int, int], None] | None = None,
    executor: str | None = None,
) -> Survey:
    """Survey q [b, h, n, d] with k [b, g, m, d] (and v, where values count) under a rule.

    `want` names statistics (see `regard.core.survey`); `sets` names sets of keys, by index or as a
    bool mask [m]; `sinks` are key indices; `tile` is the side of the tile map; `reducers` are your
    own, and share the pass. On a GPU a Triton kernel sweeps what it can; `executor` forces "triton"
    or "streamed". Nothing is differentiated.

    >>> q = torch.randn(1, 2, 100, 8)
    >>> report = survey(q, q, q, want=("entropy", "sets"), sets={"start": [0, 1, 2, 3]})
    >>> report.named("start").shape
    torch.Size([1, 2, 100])
    """
    q, k, values = one_dtype(q, k, k if v is None else v)
    call = Call.of(q, k, values, Rule.of(rule), q_positions, k_positions).checked()
    want = (want,) if isinstance(want, str) else tuple(want)
    settings = {
        "sets": sets, "sinks": sinks, "tile": tile, "top": top, "near": near, "reducers": reducers,
        "progress": progress, "by": executor, "has_value": v is not None,
    }  # fmt: skip
    found = surveyed(call, want, settings).survey
    assert found is not None
    return found


def survey_call(
    call: Call,
    want: Sequence[str] = (),
    *,
    sets: Mapping[str, Tensor | Sequence[int]] | None = None,
    sinks: Sequence[int] = (),
    tile: int = 64,
    top: int = 8,
    near: int = 32,
    reducers: Sequence[Reducer] = (),
    progress: Callable[[int, int], None] | None = None,
    by: str | None = None,
    has_value: bool = True,
) -> Survey:
    """Survey a call as it is, at its positions: what `run` does for those who want statistics."""
    want = tuple(dict.fromkeys((*want, *(("received",) if "sinks" in want else ()))))
    need_wants(want, has_value, bool(sets), len(sinks) > 0)
    for name, x in (("tile", tile), ("top", top), ("near", near)):
        if isinstance(x, bool) or not isinstance(x, int) or x < 1:
            fail(ValueRangeError, name, shape_of(x), "a whole number of at least 1", f"{name}=64")
    for sink in sinks:
        if not 0 <= sink < call.m:
            fail(ValueRangeError, "sinks", sink, f"keys 0 to {call.m - 1}", "name keys by index")
    call = _detached(call)
    if _by_kernel(call, want, tile, bool(reducers), by):
        from regard.run.triton.survey import run_survey

        with torch.no_grad(), without_autocast(call.q.device):
            whole = run_survey(call, want, tile)
        count(float(call.b * call.h * call.n * call.m), 2 * call.d, float(bytes_of(call.k)))
        fields = [x for one in want for x in FIELDS[one] if x in whole]
        found = {x: whole[x] for x in fields}
        return Survey(found, call.n, call.m, tile, near, tuple(sets or ()), tuple(sinks))
    with torch.no_grad(), without_autocast(call.q.device):
        chosen = _sets(sets or {}, call)
        made = make_reducers(call, want, chosen, tile, min(top, call.m), near)
        _sweep(call, [*made, *reducers], tile, progress)
    found = {}
    for reducer in made:
        found.update(reducer.finish())
    return Survey(found, call.n, call.m, tile, near, tuple(sets or ()), tuple(sinks))


def _detached(call: Call) -> Call:
    """Return a call that nothing is differentiated through."""
    if not torch.is_grad_enabled() or not call.needs_grad:
        return call
    return call.replace(q=call.q.detach(), k=call.k.detach(), v=call.v.detach())


def _by_kernel(
    call: Call, want: tuple[str, ...], tile: int, own: bool, executor: str | None
) -> bool:
    """Decide between the Triton kernel and streaming rows."""
    if executor not in (None, "triton", "streamed"):
        fail(
            ExecutorError, "executor", repr(executor), "'triton' or 'streamed'", "pass one of these"
        )
    if executor == "streamed" or (executor is None and call.q.device.type != "cuda"):
        return False
    reason = why_not_here(call.q.device) or ("reducers of your own read rows" if own else "")
    if not reason:
        from regard.run.triton.survey import can_survey  # imports triton

        answer = can_survey(call, want, tile)
        reason = answer.reason if isinstance(answer, No) else ""
    if reason and executor == "triton":
        fail(
            ExecutorError, "executor", f"'triton', which cannot: {reason}", "'streamed'",
            "leave it out",
        )  # fmt: skip
    return not reason


def _sets(sets: Mapping[str, Tensor | Sequence[int]], call: Call) -> Tensor:
    """Write named sets as columns of a matrix [m, sets] of 0 and 1."""
    dtype = wide(call.q.dtype)
    columns = torch.zeros(call.m, len(sets), dtype=dtype, device=call.q.device)
    for c, (name, given) in enumerate(sets.items()):
        x = torch.as_tensor(given, device=call.q.device)
        if x.dim() != 1 or x.is_floating_point() or (x.dtype == torch.bool and len(x) != call.m):
            fail(
                ShapeError,
                f"sets[{name!r}]",
                shape_of(x),
                f"key indices, or a bool mask [{call.m}]",
                "list the keys of the set",
            )
        if x.dtype != torch.bool and len(x) and not 0 <= int(x.min()) <= int(x.max()) < call.m:
            fail(
                ValueRangeError, f"sets[{name!r}]", f"keys {int(x.min())} to {int(x.max())}",
                f"keys 0 to {call.m - 1}", "count keys from 0",
            )  # fmt: skip
        columns[x, c] = 1.0
    return columns


@dataclass
class RowBlock:
    """Some rows of one head with the keys they may meet: what a reducer reads.

    Weights are `size * share[:, None]` ([r, c] and [r]); `size` is never divided, since most
    reducers need no more than sums. Rows are `rows`, keys `cols`; `i`, `j` are their positions.
    """

    b: int
    h: int
    rows: slice
    cols: slice
    i: Tensor
    j: Tensor
    scores: Tensor
    size: Tensor
    share: Tensor
    lse: Tensor | None
    top: Tensor | None  # what was taken off the scores before `size`, [r]
    sink: Tensor | None  # what a sink leaves to the keys, [r]
    met: Tensor | None  # pairs that may meet among `met_cols`, None if all may
    met_cols: slice
    tile: int
    tops: Tensor | None = None

    @cached_property
    def total(self) -> Tensor:
        """Sum of `size` in each row, [r]."""
        total: Tensor = self.tiled.sum(1)
        return total

    @cached_property
    def tiled(self) -> Tensor:
        """Sum of `size` in each tile of keys, [r, t]."""
        sums: Tensor = self.size.unflatten(1, (-1, self.tile)).sum(-1)
        return sums

    @cached_property
    def tile_top(self) -> Tensor:
        """Largest `size` in each tile of keys, [r, t]."""
        if self.tops is not None and self.top is not None:
            return torch.exp(self.tops - self.top[:, None])
        tops: Tensor = self.size.unflatten(1, (-1, self.tile)).amax(-1)
        return tops

    @cached_property
    def largest(self) -> tuple[Tensor, Tensor]:
        """Largest `size` of each row and its column, [r, 1] each: by way of its tile."""
        if self.tops is None:
            size, key = self.size.max(1, keepdim=True)
            return size, key
        tile = self.tops.argmax(1)
        row = torch.arange(len(tile), device=tile.device)
        within = self.scores.unflatten(1, (-1, self.tile))[row, tile].argmax(1)
        key = tile * self.tile + within
        return self.size[row, key][:, None], key[:, None]

    @cached_property
    def weights(self) -> Tensor:
        """The weights themselves, [r, c]."""
        return self.size * self.share[:, None]


def _sweep(
    call: Call,
    reducers: list[Reducer],
    tile: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Walk over heads and blocks of rows, and show each block to every reducer."""
    width = -(-call.m // tile) * tile
    side = max(1, min(call.n, max(LEAST_ROWS, SCORES // max(width, 1))))
    if side > 16:
        side -= side % 16
    blocks = -(-call.n // side) if call.n else 0
    states = None
    if not call.placed and not call.rule.score.needs_row and call.m:
        states = call.rule.tiles(call.n, call.m, (side, tile), device=call.q.device).state
    scorer = _Scorer(call, tile, side)
    own = asks_for_more(call.rule.support, call.q.device)
    alike = call.rule.support.extent()[1] == 1 and scorer.at.j.dim() < 4 and not own
    done, total = 0, call.b * call.h * blocks
    for b in range(call.b):
        for t in range(blocks):
            rows = slice(t * side, min((t + 1) * side, call.n))
            place = None
            for h in range(call.h):
                if place is None or not alike:  # heads of one support share the mask
                    row = None if states is None else _row(states, b, h, t)
                    place = scorer.place(b, h, rows, row)
                block = scorer.block(place, b, h)
                for reducer in reducers:
                    reducer.take(block)
                done += 1
                if progress is not None:
                    progress(done, total)


def _row(states: Tensor, b: int, h: int, t: int) -> list[int]:
    """States of the tiles of one block of rows."""
    row: list[int] = states[min(b, len(states) - 1), min(h, states.shape[1] - 1), t].tolist()
    return row


class _Place(NamedTuple):
    """Where a block stands, and which of its pairs may meet."""

    rows: slice
    cols: slice
    at: At
    met: Tensor | None
    hidden: Tensor | None  # pairs that may not meet, among `met_cols`
    met_cols: slice


class _Scorer:
    """Makes blocks: scores into one buffer, their exponentials into another."""

    def __init__(self, call: Call, tile: int, side: int) -> None:
        self.call, self.tile = call, tile
        self.dtype = wide(call.q.dtype)
        rule = call.rule
        self.width = -(-call.m // tile) * tile
        self.padded: dict[tuple[int, int], Tensor] = {}
        self.at = call.at()
        self.plain = not why_not_product(call) and call.q.dtype not in (torch.half, torch.bfloat16)
        self.change: Change | None = None
        if self.plain:
            q, k, scale = product(call)
            self.q, self.k = q.to(self.dtype) * scale, k.to(self.dtype)
        else:
            self.q = call.q.to(self.dtype)
            self.k = expand_heads(call.k, call.h).to(self.dtype)
            self.change = rule.score.bind(self.q, self.k)
        room = (side, self.width)
        self.buffers = [torch.empty(room, dtype=self.dtype, device=call.q.device) for _ in "se"]

    def _keys(self, b: int, h: int) -> Tensor:
        """Keys of a head, filled up to whole tiles, [c, d]."""
        share = self.call.h // self.k.shape[1]
        k = self.k[b, h // share]
        short = self.width - k.shape[0]
        if not short:
            return k
        found = self.padded.get((b, h // share))
        if found is None:
            found = self.padded[b, h // share] = torch.nn.functional.pad(k, (0, 0, 0, short))
        return found

    def place(self, b: int, h: int, rows: slice, row: list[int] | None) -> _Place:
        """Find which keys a block of rows can meet."""
        cols, asked = _reach(row, self.tile, self.width, self.call.m)
        place = torch.arange(rows.start, rows.stop, device=self.q.device)
        met = self._met(b, h, place, asked) if asked.stop > asked.start else None
        hidden = None if met is None else ~met
        return _Place(rows, cols, self._at(b, h, place, cols), met, hidden, asked)

    def block(self, place: _Place, b: int, h: int) -> RowBlock:
        """Score the rows of one head."""
        rows, cols, at, _, hidden, asked = place
        r, c = rows.stop - rows.start, cols.stop - cols.start
        scores = self.buffers[0].view(-1)[: r * c].view(r, c)
        count(float(r * c), self.q.shape[-1], 2.0 * bytes_of(scores))
        if self.plain:
            torch.mm(self.q[b, h, rows], self._keys(b, h)[cols].T, out=scores)
        else:
            self._general(scores, place._replace(at=at._replace(h=torch.full_like(at.h, h))), b, h)
        if hidden is not None:
            part = scores[:, asked.start - cols.start : asked.stop - cols.start]
            part.masked_fill_(hidden, REMOVED)
        return self._weighed(scores, place, b, h)

    def _at(self, b: int, h: int, place: Tensor, cols: slice) -> At:
        """Places of the pairs; keys beyond the last one stand where the last one does."""
        at = self.at
        col = torch.arange(cols.start, cols.stop, device=place.device).clamp(max=self.call.m - 1)
        i = at.i.expand(*(at.i.shape[:-2]), -1, 1)
        i = i[min(b, len(i) - 1), 0] if i.dim() == 4 else i
        j = at.j
        if j.dim() == 4:
            j = j[min(b, len(j) - 1), min(h, j.shape[1] - 1), 0]
        heads = torch.tensor(b, device=place.device), torch.tensor(h, device=place.device)
        return At(*heads, place[:, None], col, i[place], j[col])

    def _met(self, b: int, h: int, place: Tensor, cols: slice) -> Tensor:
        at = self._at(b, h, place, cols)
        real = torch.arange(cols.start, cols.stop, device=place.device) < self.call.m
        return (self.call.allowed(at) & real).expand(len(place), cols.stop - cols.start)

    def _general(self, scores: Tensor, place: _Place, b: int, h: int) -> None:
        """Score any match and any steps."""
        rows, cols, at, met, _, masked = place
        match = self.call.rule.score.match.take_heads([h])
        keys = self._keys(b, h)[cols]
        made = match.between(self.q[b : b + 1, h : h + 1, rows], keys[None, None])
        allowed = None
        if self.call.rule.score.needs_row:
            allowed = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
            if met is not None:
                allowed[:, masked.start - cols.start : masked.stop - cols.start] = met
        assert self.change is not None
        made = self.change(made, at._replace(allowed=allowed))
        scores.copy_(made[0, 0])
        scores.masked_fill_(scores == -torch.inf, REMOVED)

    def _weighed(self, scores: Tensor, place: _Place, b: int, h: int) -> RowBlock:
        """Take exponentials and sums of a block of scores."""
        rows, cols, at, met, hidden, masked = place
        weigh, r = self.call.rule.weigh, scores.shape[0]
        size = self.buffers[1].view(-1)[: scores.numel()].view(scores.shape)
        lse = top = sink = tops = None
        if isinstance(weigh, Softmax):
            tops = scores.unflatten(1, (-1, self.tile)).amax(-1)
            top = tops.amax(1) if tops.shape[1] else scores.new_full((r,), REMOVED)
            empty = top <= REMOVED / 2
            top = top.masked_fill(empty, 0.0)
            scores.sub_(top[:, None])
            if hidden is None:
                torch.exp(scores, out=size)
            else:
                # The exponential of -inf is exact and quick, that of a large number a slow case.
                part = scores[:, masked.start - cols.start : masked.stop - cols.start]
                part.masked_fill_(hidden, -torch.inf)
                torch.exp(scores, out=size)
                part.masked_fill_(hidden, REMOVED)
            share = top  # until the sum is known
        else:
            real = scores.masked_fill(scores <= REMOVED / 2, -torch.inf)
            weights, total = weigh.rows(real[None, None], None)
            lse = None if total is None else total[0, 0]
            torch.abs(weights[0, 0], out=size)
            share = scores.new_ones(r)
        block = RowBlock(
            b, h, rows, cols, at.i.flatten(), at.j, scores, size, share, lse, top, sink, met,
            masked, self.tile, tops,
        )  # fmt: skip
        if isinstance(weigh, Softmax):
            assert top is not None
            total = block.total
            block.lse = torch.where(total > 0, top + torch.log(total.clamp(min=1e-300)), -torch.inf)
            block.share = 1.0 / total.clamp(min=torch.finfo(total.dtype).tiny)
            if weigh.has_sink:
                block.sink = weigh.share_of_keys(block.lse, h)
                block.share = block.share * block.sink
        return block


def _reach(row: list[int] | None, tile: int, width: int, m: int) -> tuple[slice, slice]:
    """Keys that a block of rows can meet, and the run of them that must be asked about."""
    if row is None:
        return slice(0, width), slice(0, width)
    some = [t for t, state in enumerate(row) if state != EMPTY]
    if not some:
        return slice(0, 0), slice(0, 0)
    first, last = some[0], some[-1]
    short = m % tile and last == len(row) - 1  # the last tile is filled up
    asked = [t for t in range(first, last + 1) if row[t] != FULL or (short and t == last)]
    cols = slice(first * tile, (last + 1) * tile)
    if not asked:
        return cols, slice(cols.start, cols.start)
    return cols, slice(asked[0] * tile, (asked[-1] + 1) * tile)
