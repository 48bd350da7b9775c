"""Folded pieces in plain operations: any elementwise score and any weigh, with every gradient.

Each piece is checkpointed, so that training keeps O(n) memory and not the scores of all pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.partial import Partial, merge, wide
from regard.core.score.base import At, Change
from regard.run.counting import bytes_of, count
from regard.run.folding import Fold, Group

# Scores held at a time.
SCORES = 1 << 23


@dataclass(frozen=True)
class Piecewise:
    """The pieces of a folded call, each run as the reference would run it."""

    call: Call
    folds: list[tuple[slice, slice, Fold]]

    def run(self) -> Partial:
        """Run every piece, and put rows of the batch and heads together."""
        call = self.call
        dtype = wide(call.q.dtype)
        q = call.q.to(dtype)
        k, v = (expand_heads(x, call.h).to(dtype) for x in (call.k, call.v))
        change = call.rule.score.bind(q, k)
        batches = sorted({0 if r == slice(None) else r.start for r, _, _ in self.folds})
        rows = []
        for b in batches:
            mine = [f for f in self.folds if f[0] == slice(None) or f[0].start == b]
            heads = [self._fold(q, k, v, change, *f) for f in mine]
            rows.append(_joined(heads, 1))
        out, lse = _joined(rows, 0)
        return Partial(out.to(call.q.dtype), lse)

    def _fold(
        self, q: Tensor, k: Tensor, v: Tensor, change: Change, rows: slice, heads: slice, fold: Fold
    ) -> Partial:
        """Run one fold for its rows of the batch and its heads."""
        b = torch.arange(q.shape[0], device=q.device)[rows].view(-1, 1, 1, 1, 1)
        h = torch.arange(q.shape[1], device=q.device)[heads].view(-1, 1, 1, 1)
        n, m = q.shape[2], k.shape[2]
        i = _places(n, fold.size[0], fold.order_q, q.device)
        j = _places(m, fold.size[1], fold.order_k, q.device)
        layers = [self._layer(q, k, v, change, layer, b, h, i, j) for layer in fold.layers]
        whole = merge(*layers)
        back = torch.argsort(i.flatten()[:n])
        out = whole.out[:, :, :n][:, :, back]
        return Partial(out, None if whole.lse is None else whole.lse[:, :, :n][:, :, back])

    def _layer(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        change: Change,
        layer: tuple[Group, ...],
        b: Tensor,
        h: Tensor,
        i: Tensor,
        j: Tensor,
    ) -> Partial:
        """Run the groups of a layer: partial outputs for every place, [b, h, t q, e]."""
        lead = (b.shape[0], h.shape[0])
        out = q.new_zeros(*lead, *i.shape, v.shape[-1])
        lse = None if self.call.rule.weigh.sums else q.new_full((*lead, *i.shape), -torch.inf)
        made, where = [], []
        for group in layer:
            scores = lead[0] * lead[1] * i.shape[1] * group.keys.shape[1] * j.shape[1]
            for part in torch.arange(len(group.units), device=q.device).split(
                max(1, SCORES // scores)
            ):
                mask = (
                    group.mask if group.mask is None or len(group.mask) == 1 else group.mask[part]
                )
                rows = i[group.units[part]]
                cols = j[group.keys[part]].flatten(1)[:, : group.width]
                given = (q, k, v, change, b, h, rows, cols, mask)
                again = torch.is_grad_enabled()
                made.append(
                    checkpoint(self._piece, *given, use_reentrant=False)
                    if again
                    else self._piece(*given)
                )
                where.append(group.units[part])
        if made:
            units = torch.cat(where)
            out = out.index_copy(2, units, torch.cat([x[0] for x in made], 2))
            if lse is not None:
                lses = [x[1] for x in made if x[1] is not None]
                lse = lse.index_copy(2, units, torch.cat(lses, 2))
        else:  # nobody meets anybody: zeros, with gradients of zero
            never = torch.zeros((), dtype=torch.bool, device=q.device)
            out = out + torch.where(never, q.sum() + k.sum() + v.sum(), 0.0)
        return Partial(out.flatten(2, 3), None if lse is None else lse.flatten(2, 3))

    def _piece(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        change: Change,
        b: Tensor,
        h: Tensor,
        rows: Tensor,
        cols: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from places rows [u, q] to places cols [u, c]: out [b, h, u, q, e], lse."""
        rule = self.call.rule
        pick = (b[..., 0], h[..., 0])
        query, key, values = q[(*pick, rows)], k[(*pick, cols)], v[(*pick, cols)]
        at = At(
            b, h, rows[:, :, None], cols[:, None], rows[:, :, None] + rule.offset, cols[:, None]
        )
        # A match wants [b, h, n, d]: units go to the batch, and come back behind the heads.
        batch, units = query.shape[0], query.shape[2]
        match = (
            rule.score.match
            if h.shape[0] == q.shape[1]
            else rule.score.match.take_heads(h.flatten().tolist())
        )
        scores = match.between(*(x.transpose(1, 2).flatten(0, 1) for x in (query, key)))
        scores = change(scores.unflatten(0, (batch, units)).transpose(1, 2), at)
        allowed = None if mask is None else mask.transpose(0, 1)
        count(scores.numel(), q.shape[-1] + v.shape[-1], 4.0 * bytes_of(scores))
        out, lse = rule.weigh.whole(scores, allowed, values)
        return out, lse


def _places(n: int, side: int, order: Tensor | None, device: torch.device) -> Tensor:
    """Places of each tile, [t, side]; short tiles repeat the last place, which masks hide."""
    place = torch.arange(n, device=device) if order is None else order
    return torch.cat([place, place[-1:].expand(-n % side)]).view(-1, side)


def _joined(parts: list[Partial], dim: int) -> Partial:
    """Concatenate partials."""
    out = torch.cat([p.out for p in parts], dim)
    lses = [p.lse for p in parts if p.lse is not None]
    return Partial(out, torch.cat(lses, dim) if lses else None)
