"""Scans whose memory passes by a diagonal and a rank-one map: the delta rule in its general form.

    S_t = (diag(decay_t) + left_t right_t^T) S_{t-1} + k_t v_t^T,   o_t = q_t S_t

With left = -beta k and right = decay k it is the delta rule; RWKV-7 reads along one direction and
erases along another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.scan.scan_inputs import ScanTokens


def low_rank_step(
    memory: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """Pass, write and read once: `o [b, h, e]` and the new memory `[b, h, d, e]`.

    `q`, `k`, `left`, `right` `[b, h, d]`; `v [b, h, e]`; `log_decay [b, h, 1 or d]`.

    >>> one, key = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1)
    >>> out, memory = low_rank_step(one, key, key, 2 * key, 0 * key, -key, key)
    >>> out.item()  # what was there is gone
    2.0
    """
    read = torch.einsum("bhd,bhde->bhe", right, memory)
    memory = log_decay.exp().unsqueeze(-1) * memory + torch.einsum("bhd,bhe->bhde", left, read)
    memory = memory + torch.einsum("bhd,bhe->bhde", k, v)
    return torch.einsum("bhd,bhde->bhe", q, memory), memory


def low_rank_recurrent(
    tokens: ScanTokens, left: Tensor, right: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Run every token through `low_rank_step`: `out [b, h, n, e]` and the last memory."""
    decay = decay_of(tokens)
    outs = []
    for t in range(tokens.q.shape[2]):
        q, k, v, g, x, y = (z[:, :, t] for z in (tokens.q, tokens.k, tokens.v, decay, left, right))
        out, memory = low_rank_step(memory, q, k, v, g, x, y)
        outs.append(out)
    return torch.stack(outs, dim=2), memory


def low_rank_chunked(
    tokens: ScanTokens, left: Tensor, right: Tensor, memory: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Take `chunk` tokens at once: equal to `low_rank_recurrent`.

    What each token reads of the memory before it, y_t = right_t S_{t-1}, hangs on what the tokens
    of the chunk before it read: a triangular system, solved once for the chunk.
    """
    decay = decay_of(tokens)
    outs = []
    for start in range(0, tokens.q.shape[2], chunk):
        some = slice(start, start + chunk)
        q, k, v, g, x, y = (
            z[:, :, some] for z in (tokens.q, tokens.k, tokens.v, decay, left, right)
        )
        c = q.shape[2]
        line = torch.arange(c, device=q.device)
        # Sums of logs from s + 1 to t, [b, h, t, s, d]: no differences, as logs may be -inf.
        later = (line[:, None] > line)[..., None]
        passed = torch.where(later, g[:, :, :, None], 0.0).cumsum(2)
        at_most = (line[:, None] >= line)[..., None]
        since = torch.where(at_most, passed.exp(), 0.0)  # from s to t
        before = F.pad(since[:, :, :-1], (0, 0, 0, 0, 1, 0))  # from s to t - 1
        from_start = g.cumsum(2).exp()  # [b, h, t, d]
        to_last = F.pad(g[:, :, :-1], (0, 0, 1, 0)).cumsum(2).exp()
        read = (y * to_last) @ memory + _pairs(y, before, k) @ v
        read = torch.linalg.solve_triangular(
            -_pairs(y, before, x), read, upper=False, unitriangular=True
        )
        outs.append(
            (q * from_start) @ memory + _pairs(q, since, x) @ read + _pairs(q, since, k) @ v
        )
        ends = since[:, :, -1]  # [b, h, s, d]
        memory = from_start[:, :, -1, :, None] * memory
        memory = memory + (ends * x).mT @ read + (ends * k).mT @ v
    return torch.cat(outs, 2), memory


def decay_of(tokens: ScanTokens) -> Tensor:
    """Return the log decay of every channel, [b, h, n, d]; zeros where there is none."""
    if tokens.log_decay is None:
        return torch.zeros_like(tokens.k)
    return tokens.log_decay.expand_as(tokens.k)


def _pairs(a: Tensor, decay: Tensor, b: Tensor) -> Tensor:
    """Products of a [b, h, t, d] and b [b, h, s, d] under decay [b, h, t, s, d]: [b, h, t, s]."""
    return torch.einsum("bhtd,bhtsd->bhts", a, decay * b[:, :, None])
