"""Survey attention in one pass over blocks of rows: O(n) memory, whole rows at a time.

Scores of a block of queries with all keys they may meet fit the cache, so the softmax of a row is
known when its scores are, and every reducer reads the block while it is hot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
from regard.run.row_blocks import BlockPlace, RowBlock
from regard.run.runner import surveyed
from regard.run.triton.availability import why_not_here

# A block has about this many scores: with their exponentials they stay in the second cache. But a
# product of fewer rows than these costs more than what the cache saves.
SCORES, LEAST_ROWS = 1 << 18, 64
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
        _sweep(call, sorted([*made, *reducers], key=lambda x: x.last), tile, progress)
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
            # Heads of one support share the mask.
            for heads in [range(call.h)] if alike else [range(h, h + 1) for h in range(call.h)]:
                row = None if states is None else _row(states, b, heads[0], t)
                place = scorer.place(b, heads, rows, row)
                for h in heads:
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


class _Scorer:
    """Makes blocks: scores into one buffer, their exponentials into another."""

    def __init__(self, call: Call, tile: int, side: int) -> None:
        self.call, self.tile = call, tile
        self.dtype = wide(call.q.dtype)
        rule = call.rule
        self.width = -(-call.m // tile) * tile
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
        self.padded: dict[tuple[int, int], Tensor] = {}
        self.buffers = [self.q.new_empty(side * self.width) for _ in ("scores", "sizes")]

    def _keys(self, b: int, h: int) -> Tensor:
        """Keys of a head, filled up to whole tiles, [c, d]."""
        g = h // (self.call.h // self.k.shape[1])
        found = self.padded.get((b, g))
        if found is None:
            k = self.k[b, g]
            short = self.width - len(k)
            found = torch.nn.functional.pad(k, (0, 0, 0, short)) if short else k
            self.padded[b, g] = found
        return found

    def place(self, b: int, heads: range, rows: slice, row: list[int] | None) -> BlockPlace:
        """Find which keys a block of rows can meet."""
        h = heads[0]
        cols, asked = _reach(row, self.tile, self.width, self.call.m)
        place = torch.arange(rows.start, rows.stop, device=self.q.device)
        met = self._met(b, h, place, asked) if asked.stop > asked.start else None
        r, c = rows.stop - rows.start, cols.stop - cols.start
        scores, size = (x[: r * c].view(r, c) for x in self.buffers)
        part = scores[:, asked.start - cols.start : asked.stop - cols.start]
        at, hidden = self._at(b, h, place, cols), None if met is None else ~met
        return BlockPlace(
            rows, cols, at, at.i.flatten(), met, hidden, asked, heads, scores, size, part
        )

    def block(self, place: BlockPlace, b: int, h: int) -> RowBlock:
        """Score the rows of one head."""
        scores = place.scores
        count(float(scores.numel()), self.q.shape[-1], 2.0 * bytes_of(scores))
        if self.plain:
            torch.mm(self.q[b, h, place.rows], self._keys(b, h)[place.cols].T, out=scores)
        else:
            at = place.at._replace(h=torch.full_like(place.at.h, h))
            self._general(scores, place._replace(at=at), b, h)
        if place.hidden is not None:
            place.part.masked_fill_(place.hidden, -torch.inf)
        return self._weighed(place, b, h)

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

    def _general(self, scores: Tensor, place: BlockPlace, b: int, h: int) -> None:
        """Score any match and any steps."""
        match = self.call.rule.score.match.take_heads([h])
        keys = self._keys(b, h)[place.cols]
        made = match.between(self.q[b : b + 1, h : h + 1, place.rows], keys[None, None])
        allowed = None
        if self.call.rule.score.needs_row:
            allowed = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
            if place.met is not None:
                first = place.asked.start - place.cols.start
                allowed[:, first : first + place.met.shape[1]] = place.met
        assert self.change is not None
        scores.copy_(self.change(made, place.at._replace(allowed=allowed))[0, 0])

    def _weighed(self, place: BlockPlace, b: int, h: int) -> RowBlock:
        """Take exponentials and sums of a block of scores."""
        weigh, scores, size = self.call.rule.weigh, place.scores, place.size
        lse = top = tops = None
        if isinstance(weigh, Softmax):
            tops = scores.unflatten(1, (-1, self.tile)).amax(-1)
            top = tops.amax(1) if tops.shape[1] else scores.new_zeros(len(scores))
            top.clamp_(min=REMOVED)  # of a row without keys: less it, they stay removed
            torch.exp(scores.sub_(top[:, None]), out=size)
            share = top  # until the sum is known
        else:
            weights, total = weigh.rows(scores[None, None], None)
            lse = None if total is None else total[0, 0]
            torch.abs(weights[0, 0], out=size)
            share = scores.new_ones(len(scores))
        if self.plain:
            place.part.clamp_(min=REMOVED)
        else:
            scores.clamp_(min=REMOVED)
        block = RowBlock(place, b, h, scores, size, share, lse, top, tops, self.tile)
        if isinstance(weigh, Softmax):
            block.share = block.total.clamp(min=torch.finfo(self.dtype).tiny).reciprocal_()
            if weigh.has_sink:
                assert block.lse is not None
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
