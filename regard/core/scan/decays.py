"""Decay inside one chunk of tokens, safely: sums of log decays are exponentiated, not products.

A sum of log decays is at most 0, so its exponential is at most 1 and nothing can overflow,
however strong the decay. No two sums are subtracted: nothing cancels, and a log decay of
minus infinity (a reset) simply gives 0. The one exception are chunks of mild decay.

Shapes: `rows` of chunks of `c` tokens; a rate is `None` or `[rows, t|1, c, 1]` (per head) or
`[rows, t|1, c, d]` (per channel), where rows are batch and heads and `t` counts the chunks.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.readable import can_be_read

_MILD = -40.0
"""A chunk whose log decays sum to no less than this can be undone by its inverse in float32."""


class ChunkDecay:
    """How keys and a memory decay within chunks: what several steps ask of one rate.

    >>> decay = ChunkDecay(torch.tensor([0.25, 0.5]).log().view(1, 1, 2, 1))
    >>> decay.leaving.flatten().tolist(), decay.passing.flatten().tolist()
    ([0.5, 1.0], [0.125])
    """

    def __init__(self, rate: Tensor | None) -> None:
        self.rate = rate

    @cached_property
    def mild(self) -> bool:
        """Whether a decay by channel is small enough to be undone: asked where nothing waits."""
        rate = self.rate
        if rate is None or rate.shape[-1] == 1 or rate.device.type != "cpu":
            return False
        return can_be_read(rate) and bool(rate.detach().sum(-2).amin() >= _MILD)

    @cached_property
    def _sums(self) -> Tensor:
        assert self.rate is not None
        return self.rate.cumsum(-2)

    @cached_property
    def entering(self) -> Tensor | None:
        """Decay from before the chunk to each token, that token's own included."""
        return None if self.rate is None else self._sums.exp()

    @cached_property
    def leaving(self) -> Tensor | None:
        """Decay from after each token to the end of the chunk."""
        if self.rate is None:
            return None
        if self.mild:
            return (self._sums[..., -1:, :] - self._sums).exp()
        later = F.pad(self.rate[..., 1:, :], (0, 0, 0, 1))
        return later.flip(-2).cumsum(-2).flip(-2).exp()

    @cached_property
    def passing(self) -> Tensor | None:
        """Decay of the whole chunk, `[rows, t|1, 1|d, 1]`, as it multiplies a memory."""
        return None if self.rate is None else self.rate.sum(-2).exp().unsqueeze(-1)

    @cached_property
    def _freed(self) -> Tensor:
        return (-self._sums).exp()

    def products(self, q: Tensor, entered: Tensor, k: Tensor, *, itself: bool) -> Tensor:
        """Match each query with each decayed earlier key of its chunk: `[rows, t, c, c]`.

        Entry `i, j` is `q_i . decay(j, i) k_j`; `entered` is `times(q, self.entering)`, which those
        who ask have; `itself` says whether the diagonal counts (a read sees the token's own write,
        the delta rule's correction does not).
        """
        offset, rate = 0 if itself else -1, self.rate
        if rate is not None and rate.shape[-1] > 1:
            if not self.mild:
                return _channel_products(q, k, rate).tril(offset)
            # What is above the diagonal grows, up to exp(40), and is thrown away.
            return (entered @ (k * self._freed).mT).tril(offset)
        scores = q @ k.mT
        return scores.tril_(offset) if rate is None else scores * kept(rate, offset)


def times(x: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply, where there is something to multiply by."""
    return x if factor is None else x * factor


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
