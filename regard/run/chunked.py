"""Attention in tiles of queries and keys: any rule, O(n) memory, with gradients.

The forward keeps a running form over tiles of keys. The backward recomputes the scores of each
tile from what was saved (q, k, v, out, lse), lets the weigh pull the gradient back to the scores,
and autograd take it from there to q, k and whatever the score is learning. Nothing of size [n, m]
ever exists.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.core.autocast import without_autocast
from regard.core.call import Call
from regard.core.heads import gather_heads, key_heads_of
from regard.core.partial import Partial, nothing, wide
from regard.core.score.base import At, Change, keeping
from regard.core.score.biases import PlaceStep
from regard.core.score.matches import DotMatch, folded
from regard.core.value import Value
from regard.run.counting import bytes_of, count
from regard.run.executor import LAUNCH, Answer, Cost, Executor, No, Yes
from regard.run.isolation import contained, unrecorded
from regard.run.transforms import Transforms, no_second_derivative
from regard.run.walk import ROWS, SCORES, Lane, TileRow, tile_share, walk


class Chunked(Executor):
    """Stream tiles of keys past tiles of queries."""

    name = "chunked"
    transforms = Transforms.NONE

    def can(self, call: Call) -> Answer:
        """Any rule; not dropout."""
        if call.dropout:
            return No("dropout: the weights of a tile are computed twice and must not differ")
        unseen = learns_unseen(call) if torch.is_grad_enabled() else ""
        if unseen:
            return No(f"{unseen}; make them fields of a step")
        return Yes(
            "whole rows of keys for a few queries at once" if call.rule.score.needs_row else ""
        )

    def cost(self, call: Call) -> Cost:
        """Count the tiles that are not empty; elementwise passes run in cache on a CPU."""
        pairs = call.b * call.h * call.n * call.m * tile_share(call)
        size = call.q.element_size()
        moved = size * (2 * call.q.numel() + call.k.numel() + call.v.numel())
        passes = 0.0 if call.q.device.type == "cpu" else 24.0 * pairs
        held = 12.0 * min(SCORES.get(call.q.device.type, ROWS), pairs)
        # Tiles are walked in Python.
        launches = LAUNCH * max(1.0, pairs / SCORES.get(call.q.device.type, ROWS))
        work = 2.0 * pairs * (call.d + call.e) + launches
        return Cost(work, moved + passes, held, 2.5)

    def run(self, call: Call) -> Partial:
        """Run the tiles; through autograd only where a gradient is wanted."""
        return contained(call, self._run)

    def _run(self, call: Call) -> Partial:
        dtype, call = call.q.dtype, _simplified(call)
        if call.needs_grad:
            learned = call.rule.score.tensors()
            tensors = (call.q, call.k, call.v, *learned, *reached_learned(call.rule.score))
            return Partial(*_Stream.apply(call, dtype, *tensors))  # type: ignore[no-untyped-call]
        return _forward(call, dtype)


class _Scores:
    """Scores of one tile at a time."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.score = call.rule.score
        # Bound once: their tables are looked up by place. The others are bound to each tile.
        self.keeps = self.score.keeps
        self.places = [
            _kept(s.bind(call.q, call.k), keeps) if isinstance(s, PlaceStep) else None
            for s, keeps in zip(self.score.steps, self.keeps, strict=True)
        ]
        self.needs_place = call.placed or any(p is not None for p in self.places)

    def of(
        self, q: Tensor, k: Tensor, row: TileRow, cols: slice, masked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Scores of q [b, h, bq, d] with k [b, h, bk, d], and which are allowed (None: all)."""
        call, lane = self.call, row.lane
        at = allowed = None
        if masked or self.needs_place:
            at = self._at(lane, row.rows, cols)
            if masked:
                allowed = call.allowed(at)
                at = at._replace(allowed=allowed)
        heads = range(lane.h.start, lane.h.stop)
        part = self.score.match if len(heads) == call.h else self.score.match.take_heads(heads)
        scores = part.between(q, k)
        for step, place, keeps in zip(self.score.steps, self.places, self.keeps, strict=True):
            if place is not None:
                assert at is not None
                scores = place(scores, at)
            else:
                own = step if len(heads) == call.h else step.take_heads(heads)
                scores = _kept(own.bind(q, k), keeps)(
                    scores, self._within(at or self._at(lane, row.rows, cols), q, k)
                )
        return scores, allowed

    def _at(self, lane: Lane, rows: slice, cols: slice) -> At:
        device = self.call.q.device
        at = self.call.at(
            torch.arange(rows.start, rows.stop, device=device),
            torch.arange(cols.start, cols.stop, device=device),
        )
        return at._replace(
            b=at.b[lane.b], h=at.h[lane.h], i=_of_lane(at.i, lane), j=_of_lane(at.j, lane)
        )

    def _within(self, at: At, q: Tensor, k: Tensor) -> At:
        """Count batch rows, heads, queries and keys from the corner of the tile."""
        b, h, rows, cols = (torch.arange(x, device=q.device) for x in (*q.shape[:3], k.shape[2]))
        return at._replace(
            b=b.view(-1, 1, 1, 1), h=h.view(-1, 1, 1), row=rows.view(-1, 1), col=cols
        )


def _kept(change: Change, keeps: bool) -> Change:
    return keeping(change) if keeps else change


def _of_lane(x: Tensor, lane: Lane) -> Tensor:
    """Cut positions that differ between batch rows or heads."""
    if x.dim() == 4:
        x = x[lane.b] if x.shape[0] > 1 else x
        x = x[:, lane.h] if x.shape[1] > 1 else x
    return x


class _Keys(NamedTuple):
    """The key heads that a lane reads: `heads` [start, stop), and one in it for each query head."""

    heads: slice
    shared: list[int]

    @staticmethod
    def of(call: Call, lane: Lane) -> _Keys:
        found = key_heads_of(range(lane.h.start, lane.h.stop), call.h, call.g)
        return _Keys(slice(found[0], found[-1] + 1), [x - found[0] for x in found])

    def sum_heads(self, x: Tensor) -> Tensor:
        """Add up what query heads say of the key head they share: the backward of expanding."""
        count = self.heads.stop - self.heads.start
        if count == len(self.shared):
            return x
        index = torch.tensor(self.shared, device=x.device)
        return x.new_zeros(x.shape[0], count, *x.shape[2:]).index_add_(1, index, x)


def _forward(call: Call, dtype: torch.dtype) -> Partial:
    """Keep the running form of each tile of queries over its tiles of keys."""
    q, k, v, weigh = call.q, call.k, call.v, call.rule.weigh
    full = wide(dtype)
    out, lse = nothing(v.new_zeros(call.b, call.h, call.n, call.e, dtype=dtype), sums=weigh.sums)
    with torch.no_grad():
        scoring = _Scores(call)
        for row in walk(call):
            lane, rows, tiles = row
            keys = _Keys.of(call, lane)
            queries = q[lane.b, lane.h, rows].to(full)
            state = weigh.start(queries.new_zeros(*queries.shape[:3], call.e))
            for cols, masked in tiles:
                key, value = (
                    gather_heads(x[lane.b, keys.heads, cols].to(full), keys.shared) for x in (k, v)
                )
                scores, allowed = scoring.of(queries, key, row, cols, masked)
                count(scores.numel(), q.shape[-1] + call.e, bytes_of(key, value))
                state = weigh.update(state, scores, allowed, value)
            part = weigh.finish(state)
            out[lane.b, lane.h, rows] = part.out.to(dtype)
            if lse is not None and part.lse is not None:
                lse[lane.b, lane.h, rows] = part.lse
    return Partial(out, lse)


class _Stream(torch.autograd.Function):
    """Forward in tiles; backward in tiles, from (q, k, v, out, lse)."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor, *learned: Tensor
    ) -> Partial:
        """Return (out, lse); `learned` are the tensors of the score, for autograd to see.

        First those that its parts hold, then those that its functions reach.
        """
        ctx.set_materialize_grads(False)
        ctx.call = call.replace(q=q.detach(), k=k.detach(), v=v.detach())
        made = _forward(ctx.call, dtype)
        ctx.save_for_backward(q, k, v, *made, *learned)
        return made

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v and of each tensor of the score."""
        if torch.is_grad_enabled():
            no_second_derivative("chunked")
        saved: list[Any] = [None if x is None else x.detach() for x in ctx.saved_tensors]
        q, k, v, out, lse, *learned = saved
        wanted = ctx.needs_input_grad[5:]
        rule = ctx.call.rule
        held = len(rule.score.tensors())
        own = [x.requires_grad_(want) for x, want in zip(learned, wanted[:held], strict=False)]
        # A function reads its tensors itself: their gradients are asked of these very tensors.
        learned = [*own, *reached_learned(rule.score)]
        call = ctx.call.replace(
            q=q, k=k, v=v, rule=rule.replace(score=rule.score.with_tensors(own))
        )
        d_out = torch.zeros_like(out) if d_out is None else d_out
        asked = [x for x, want in zip(learned, wanted, strict=True) if want]
        with without_autocast(q.device):
            found = _backward(call, out, lse, d_out, d_lse, asked)
        d_rule = iter(found[3:])
        whole = (*found[:3], *(next(d_rule) if want else None for want in wanted))
        like = (q, k, v, *learned)
        return (
            None,
            None,
            *(None if x is None else x.to(y.dtype) for x, y in zip(whole, like, strict=True)),
        )


def _backward(
    call: Call,
    out: Tensor,
    lse: Tensor | None,
    d_out: Tensor,
    d_lse: Tensor | None,
    learned: list[Tensor],
) -> list[Tensor]:
    """Pull gradients back tile by tile: [dq, dk, dv, and one for each learned tensor]."""
    weigh, full = call.rule.weigh, wide(call.q.dtype)
    dq, dk, dv, *d_rule = (
        torch.zeros_like(x, dtype=full) for x in (call.q, call.k, call.v, *learned)
    )
    with torch.enable_grad():
        scoring = _Scores(call)
    for row in walk(call):
        lane, rows, tiles = row
        keys = _Keys.of(call, lane)
        query = call.q[lane.b, lane.h, rows].to(full).requires_grad_()
        pulled = d_out[lane.b, lane.h, rows].to(full)
        total = d_row = None
        if lse is not None:
            total = lse[lane.b, lane.h, rows]
            d_row = -(pulled * out[lane.b, lane.h, rows]).sum(-1)
            if d_lse is not None:
                d_row = d_row + d_lse[lane.b, lane.h, rows]
            d_row = d_row.masked_fill(total == -torch.inf, 0.0)
        for cols, masked in tiles:
            place = (lane.b, keys.heads, cols)
            key = call.k[place].to(full).requires_grad_()
            value = gather_heads(call.v[place].to(full), keys.shared)
            with torch.enable_grad():
                scores, allowed = scoring.of(
                    query, gather_heads(key, keys.shared), row, cols, masked
                )
            known = scores.detach()
            if allowed is not None:
                known = known.masked_fill(~allowed, -torch.inf)
            weights = weigh.weights(known, None, total)
            dv[place] += keys.sum_heads(weights.mT @ pulled)
            d_scores = weigh.pull(known, weights, pulled @ value.mT, total, d_row)
            of_query, of_key, *of_rule = torch.autograd.grad(
                scores, (query, key, *learned), d_scores, allow_unused=True
            )
            dq[lane.b, lane.h, rows] += of_query
            dk[place] += of_key
            for whole, part in zip(d_rule, of_rule, strict=True):
                if part is not None:
                    whole += part
    return [dq, dk, dv, *d_rule]


def _simplified(call: Call) -> Call:
    """Carry what can be carried in q and k, where autograd handles it, and move tables here."""
    score = call.rule.score
    if any(t.device != call.q.device for t in score.tensors()):
        score = score.to(call.q.device)
    plain = isinstance(score.match, DotMatch) and not (score.steps and score.steps[0].folds)
    # A step that meets q itself must not meet what q became.
    if not plain and all(isinstance(s, PlaceStep) for s in score.steps):
        full = wide(call.q.dtype)
        made = folded(score, call.q.to(full), call.k.to(full))
        if made is not None:
            q, k, _, score = made
            call = call.replace(q=q, k=k)
    return call if score is call.rule.score else call.replace(rule=call.rule.replace(score=score))


def reached_learned(part: Value) -> tuple[Tensor, ...]:
    """Tensors being learned that functions of a score or step reach, and that no part holds."""
    held = {id(x) for x in part.tensors()}
    found = {id(x): x for x in part.reads().tensors if x.requires_grad and id(x) not in held}
    return tuple(found.values())


def learns_unseen(call: Call) -> str:
    """Return what a function of the score learns beside the tensors that it can be found to reach.

    Each function is asked about one pair, and its graph followed to where its gradient would go.
    """
    score, q = call.rule.score, call.q
    if not score.functions():
        return ""
    known = {id(x) for x in score.reads().tensors}
    nodes = {x.grad_fn for x in score.reads().tensors if x.grad_fn is not None}
    for step in score.steps:
        if not step.functions() or not isinstance(step, PlaceStep):
            continue
        zero = torch.zeros(1, dtype=torch.long, device=q.device)
        at = At(zero.view(1, 1, 1, 1), zero.view(1, 1, 1), zero.view(1, 1), zero, zero, zero)
        with torch.enable_grad(), unrecorded():
            made = step.change(zero.view(1, 1, 1, 1).to(wide(q.dtype)), at)
        todo, seen = [made.grad_fn], set(nodes)
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in known:
                return f"the function of {step} hides a tensor {list(leaf.shape)} being learned"
            todo += [x for x, _ in node.next_functions]
    return ""
