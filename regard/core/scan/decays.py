"""Decay inside one chunk of tokens, safely: only sums of log decays are ever exponentiated.

A sum of log decays is at most 0, so its exponential is at most 1 and nothing can overflow,
however strong the decay. No two sums are ever subtracted: nothing cancels, and a log decay of
minus infinity (a reset) simply gives 0.

Shapes: `rows` of chunks of `c` tokens; a rate is `None` or `[rows, t|1, c, 1]` (per head) or
`[rows, t|1, c, d]` (per channel), where rows are batch and heads and `t` counts the chunks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def entering(rate: Tensor | None) -> Tensor | None:
    """Return the decay from before the chunk to each token, that token's own included."""
    return None if rate is None else rate.cumsum(-2).exp()


def leaving(rate: Tensor | None) -> Tensor | None:
    """Return the decay from after each token to the end of the chunk."""
    if rate is None:
        return None
    later = F.pad(rate[..., 1:, :], (0, 0, 0, 1))
    return later.flip(-2).cumsum(-2).flip(-2).exp()


def passing(rate: Tensor | None) -> Tensor | None:
    """Return the decay of the whole chunk, `[rows, t|1, 1|d, 1]`, as it multiplies a memory."""
    return None if rate is None else rate.sum(-2).exp().unsqueeze(-1)


def times(x: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply, where there is something to multiply by."""
    return x if factor is None else x * factor


def products(q: Tensor, k: Tensor, rate: Tensor | None, *, itself: bool) -> Tensor:
    """Match each query with each decayed earlier key of its chunk: `[rows, t, c, c]`.

    Entry `i, j` is `q_i . decay(j, i) k_j`; `itself` says whether the diagonal counts (a read
    sees the token's own write, the delta rule's correction does not).
    """
    offset = 0 if itself else -1
    if rate is not None and rate.shape[-1] > 1:
        return _channel_products(q, k, rate).tril(offset)
    scores = q @ k.mT
    if rate is None:
        return scores.tril_(offset)
    return scores * kept(rate, offset)


def kept(rate: Tensor, offset: int = 0) -> Tensor:
    """Give the decay from token `j` to token `i` of a chunk, `[rows, t|1, i, j]`, 0 for later `j`.

    >>> kept(torch.tensor([0.25, 0.5, 0.5]).log().view(1, 1, 3, 1))[0, 0]
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.0000],
            [0.2500, 0.5000, 1.0000]])
    """
    c = rate.shape[-2]
    square = torch.ones(c, c, dtype=torch.bool, device=rate.device)
    # Laid out [j, i], so that the running sum goes along memory.
    logs = torch.where(square.triu(1), rate.mT, 0.0).cumsum(-1)
    return (logs.exp() * square.triu(-offset)).mT


def _channel_products(q: Tensor, k: Tensor, rate: Tensor) -> Tensor:
    """Match queries with keys that decay per channel, by halving.

    A chunk is two halves. A query of the right half and a key of the left one meet at the
    boundary: the query carries the decay from the boundary to itself, the key the decay from
    itself to the boundary; both are at most 1. Pairs within a half are the same problem, half as
    long, so log2(c) levels of ordinary matrix products make the chunk, built from length 1 up.
    """
    c = q.shape[-2]
    length = 1 << (c - 1).bit_length()
    q, k, rate = (F.pad(x, (0, 0, 0, length - c)) for x in (q, k, rate))
    since, until = rate, torch.zeros_like(rate)  # log decay from the start, and to the end
    scores = (q * k).sum(-1)[..., None, None]  # [rows, t, blocks, m, m]
    m = 1
    while m < length:
        _, q_right = _halves(q, m)
        k_left, _ = _halves(k, m)
        since_left, since_right = _halves(since, m)
        until_left, until_right = _halves(until, m)
        across = (q_right * since_right.exp()) @ (k_left * until_left.exp()).mT
        left, right = torch.unflatten(scores, 2, (-1, 2)).unbind(3)
        top = F.pad(left, (0, m))
        scores = torch.cat((top, torch.cat((across, right), dim=-1)), dim=-2)
        whole_left, whole_right = since_left[..., -1:, :], since_right[..., -1:, :]
        since = torch.stack((since_left, since_right + whole_left), dim=3).flatten(2, 4)
        until = torch.stack((until_left + whole_right, until_right), dim=3).flatten(2, 4)
        m *= 2
    return scores.squeeze(2)[..., :c, :c]


def _halves(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Cut `[rows, t, c, d]` in blocks of `2 m` tokens, halved: two `[rows, t, blocks, m, d]`."""
    left, right = torch.unflatten(x, 2, (-1, 2, m)).unbind(3)
    return left, right
