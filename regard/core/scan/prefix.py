"""Softmax over every prefix: scores that no query changes, so that attention is a scan.

`o_t = sum_{j<=t} exp(s_j) v_j / sum_{j<=t} exp(s_j)`. The state is a `Partial`, and goes on by
`merge`: what is seen before t and what comes after are attention over disjoint keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.autocast import without_autocast
from regard.core.errors import ShapeError, fail, shape_of
from regard.core.partial import Partial, finite, log_sum_exp, merge, nothing, wide
from regard.core.scan.containment import Spoiled, readers, some_broken


def prefix_softmax(
    scores: Tensor,
    v: Tensor,
    *,
    state: Partial | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Partial]:
    """Average v [b, h, n, e] over each prefix with weights exp(scores) [b, h, n], in O(n).

    `keep` [b, n] is false at padding, `reset` [b, n] true where a document begins, `state` what an
    earlier call returned (out [b, h, 1, e], lse [b, h, 1]). Gives [b, h, n, e] and the state.

    >>> scores, v = torch.zeros(1, 1, 3), torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
    >>> prefix_softmax(scores, v)[0].flatten()
    tensor([1.0000, 1.5000, 3.0000])
    """
    if v.dim() != 4 or list(scores.shape) != list(v.shape[:3]):
        fail(
            ShapeError, "scores", shape_of(scores), f"{list(v.shape[:3])}, as v", "score each value"
        )
    dtype, work = v.dtype, wide(v.dtype)
    scores, v = scores.to(work), v.to(work)
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None], -torch.inf)
    if state is None:
        state = nothing(v[:, :, :1])
    scores, v, state, spoiled = _contain(scores, v, state, reset)
    segment = None if reset is None else reset.long().cumsum(1)
    parts, first = [], segment[:, :1] * 0 if segment is not None else None
    for start in range(0, v.shape[2], chunk):
        piece = slice(start, start + chunk)
        own = None if segment is None else segment[:, piece]
        with without_autocast(v.device):
            out, state = _chunk(scores[:, :, piece], v[:, :, piece], state, own, first)
        first = None if own is None else own[:, -1:]
        parts.append(out)
    out = torch.cat(parts, dim=2)
    if spoiled is not None:
        assert state.lse is not None
        out, mean, lse = spoiled.fill(out, state.out, state.lse)
        state = Partial(mean, lse)
    return out.to(dtype), state


def _contain(
    scores: Tensor, v: Tensor, state: Partial, reset: Tensor | None
) -> tuple[Tensor, Tensor, Partial, Spoiled | None]:
    """Remove what is broken, and note who reads it: not a value whose score is -inf."""
    lse, alone = state.lse, v.shape[2] == 1 and reset is None
    assert lse is not None
    if alone or not some_broken(v, state.out, scores.exp(), lse.exp()):
        return scores, v, state, None
    bad = ~v.isfinite().all(-1) | ~(scores < torch.inf)
    entered = (~state.out.isfinite().all(-1) | ~(lse < torch.inf)).squeeze(-1)
    spoiled = readers(bad & (scores != -torch.inf), entered, reset=reset)
    mean = state.out.masked_fill(entered[..., None, None], 0.0)
    state = Partial(mean, lse.masked_fill(entered[..., None], -torch.inf))
    scores, v = scores.masked_fill(bad, -torch.inf), v.masked_fill(bad[..., None], 0.0)
    return scores, v, state, spoiled


def _chunk(
    scores: Tensor, v: Tensor, before: Partial, segment: Tensor | None, first: Tensor | None
) -> tuple[Tensor, Partial]:
    """Scan one chunk: within it all pairs, and what was before it as one more part."""
    n = scores.shape[-1]
    met = torch.ones(n, n, dtype=torch.bool, device=v.device).tril()
    assert before.lse is not None
    lse = before.lse.expand(-1, -1, n)
    if segment is not None and first is not None:
        met = met & (segment[:, None, :, None] == segment[:, None, None, :])
        lse = lse.masked_fill((segment != first)[:, None], -torch.inf)
    rows = scores[:, :, None].expand(-1, -1, n, -1).masked_fill(~met, -torch.inf)
    own = log_sum_exp(rows, dim=-1)
    inside = Partial(torch.exp(rows - finite(own)[..., None]) @ v, own)
    out, total = merge(inside, Partial(before.out.expand_as(inside.out), lse))
    assert total is not None
    return out, Partial(out[:, :, -1:], total[:, :, -1:])
