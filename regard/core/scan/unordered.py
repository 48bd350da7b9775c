"""Linear attention without order: every query reads the one memory of all keys."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.autocast import without_autocast
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.heads import expand_heads
from regard.core.partial import wide
from regard.core.scan.chunked_scan import chunked
from regard.core.scan.containment import cleared, contain
from regard.core.scan.scan_inputs import prepare, starts


def unordered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    keep: Tensor | None = None,
    documents: Tensor | None = None,
    key_documents: Tensor | None = None,
    scale: float = 1.0,
    normalize: float | None = None,
) -> Tensor:
    """Read `o_i = q_i (sum over j of k_j v_j^T)`: bidirectional, in O(n + m).

    `q [b, h, n, d]`, `k [b, g, m, d]`, `v [b, g, m, e]` with `g` dividing `h`; `keep [b, m]` is
    false at padding. `documents [b, n]` in a row, and `key_documents [b, m]` where the keys are
    others' tokens, keep documents apart. With `normalize`, the output is divided by
    `q_i . sum over j of k_j`, held at least that far from zero. Returns `[b, h, n, e]`.

    >>> ones = torch.ones(1, 1, 3, 2)
    >>> unordered(ones, ones, torch.arange(3.0).view(1, 1, 3, 1), normalize=1e-6).flatten()
    tensor([1., 1., 1.])
    """
    values = v if normalize is None else with_ones(v)
    if documents is not None and key_documents is None:
        out = _both_ways(q, k, values, keep, documents, scale)
    elif documents is not None and key_documents is not None:
        out = torch.zeros((), dtype=wide(q.dtype), device=q.device)
        for document in key_documents.unique():
            one = key_documents == document
            memory = summed(k, values, keep=one if keep is None else one & keep)
            mine = (documents == document)[:, None, :, None]
            out = out + torch.where(mine, _read(q, memory, scale), 0.0)
    else:
        out = _read(q, summed(k, values, keep=keep), scale)
    return (out if normalize is None else divided(out, normalize)).to(v.dtype)


def summed(k: Tensor, v: Tensor, *, keep: Tensor | None = None) -> Tensor:
    """Sum k_j v_j^T over all keys: the memory [b, g, d, e] that every query reads.

    >>> summed(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 1)).flatten().tolist()
    [3.0, 3.0]
    """
    if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3]:
        fail(ShapeError, "v", shape_of(v), f"[b, g, m, e] for k {list(k.shape)}", "pair them up")
    k, v = k.to(wide(k.dtype)), v.to(wide(k.dtype))
    if keep is not None:
        k, v = cleared(k, v, keep)
    with without_autocast(k.device):
        return k.mT @ v


def read(q: Tensor, memory: Tensor, normalize: float | None = None) -> Tensor:
    """Read what `summed` made with q [b, h, n, d]; with `normalize` v had `with_ones`.

    >>> read(torch.ones(1, 2, 1, 2), torch.ones(1, 1, 2, 3)).shape
    torch.Size([1, 2, 1, 3])
    """
    out = _read(q, memory, 1.0)
    return (out if normalize is None else divided(out, normalize)).to(q.dtype)


def _read(q: Tensor, memory: Tensor, scale: float) -> Tensor:
    if q.shape[1] % memory.shape[1]:
        fail(
            ShapeError, "k", f"{memory.shape[1]} heads",
            f"a divisor of the {q.shape[1]} query heads", "repeat or pool the key heads",
        )  # fmt: skip
    with without_autocast(q.device):
        return (q.to(memory.dtype) * scale) @ expand_heads(memory, q.shape[1])


def _both_ways(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, documents: Tensor, scale: float
) -> Tensor:
    """Scan forwards and backwards, each token's own pair counted once."""
    reset = starts(documents)
    forth = prepare(q, k, v, keep=keep, reset=reset, scale=scale)
    flipped = (x.flip(2) for x in (q, k, v))
    back_keep = None if keep is None else keep.flip(1)
    back_reset = starts(documents.flip(1))
    back = prepare(*flipped, keep=back_keep, reset=back_reset, scale=scale)
    start = forth.q.new_zeros(forth.memory_shape)
    with without_autocast(q.device):
        forth, _, before_me = contain(forth, (), keep=keep, reset=reset)
        back, _, after_me = contain(back, (), keep=back_keep, reset=back_reset)
        before, _ = chunked(forth, start)
        after, _ = chunked(back, start)
        own = (forth.q * forth.k).sum(-1, keepdim=True) * forth.v
        out = before + after.flip(2) - own
        if before_me is not None and after_me is not None:
            rows = before_me.rows | after_me.rows.flip(2)
            out = out.masked_fill(rows[..., None], torch.nan)
        return out


def with_ones(v: Tensor) -> Tensor:
    """Add a channel of ones to the values, in which a scan sums its weights: `[b, h, n, e + 1]`."""
    return torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)


def divided(out: Tensor, least: float) -> Tensor:
    """Divide the values by the sum of their weights, the last channel of `out`.

    A sum closer to zero than `least` is held there, its sign kept: rows without any weight give
    zeros.
    """
    if not least > 0:
        fail(ValueRangeError, "normalize", least, "a number above 0 or None", "use 1e-6")
    total = out[..., -1:]
    held = torch.where(total.abs() < least, torch.copysign(total.new_full((), least), total), total)
    return out[..., :-1] / held
