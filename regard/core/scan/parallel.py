"""The quadratic form of a scan: every pair of tokens at once, as masked attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard.core.scan.scan_inputs import ScanTokens


def parallel(tokens: ScanTokens, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Read all pairs: `out [b, h, n, e]` and the last memory `[b, h, d, e]`.

    `o_i = sum over j <= i of (q_i . decay(j, i) k_j) u_j + q_i decay(start, i) S`. Needs O(n^2)
    memory, and O(n^2 d) for a decay per channel: for short sequences, and to look at the weights.
    """
    q, k = tokens.q, tokens.k
    n = q.shape[2]
    kept = decay_between(tokens.log_decay, n, q)
    entered = decay_since_start(tokens.log_decay, n, q)
    u = tokens.v
    if tokens.beta is not None:
        # u_i + beta_i sum over j < i of (k_i . decay(j, i) k_j) u_j = beta_i (v_i - k_i decay S)
        beta = tokens.beta.unsqueeze(-1)
        system = torch.eye(n, dtype=q.dtype, device=q.device)
        system = system + (beta * weights(k, k, kept)).tril(-1)
        u = torch.linalg.solve_triangular(
            system, beta * (u - (k * entered) @ memory), upper=False, unitriangular=True
        )
    out = weights(q, k, kept) @ u + (q * entered) @ memory
    left = k * kept[:, :, -1]
    passed = entered[:, :, -1].unsqueeze(-1) * memory
    return out, passed + torch.einsum("bhnd,bhne->bhde", left, u)


def weights(q: Tensor, k: Tensor, kept: Tensor) -> Tensor:
    """Match queries with decayed keys: `[b, h, n, n]`, zero above the diagonal.

    `kept` is `[b|1, h|1, n, n, d|1]`, from `decay_between`.
    """
    if kept.shape[-1] == 1:
        return (q @ k.mT) * kept.squeeze(-1)
    return torch.einsum("bhid,bhjd,bhijd->bhij", q, k, kept.expand(*q.shape[:2], -1, -1, -1))


def decay_between(rate: Tensor | None, n: int, like: Tensor) -> Tensor:
    """Return the decay from token `j` to token `i`, `[b|1, h|1, i, j, d|1]`, zero where `i < j`."""
    one = like.new_zeros(1, 1, 1, 1) if rate is None else rate
    one = one.expand(*one.shape[:2], n, one.shape[3])
    after = torch.ones(n, n, dtype=torch.bool, device=like.device).tril(-1)[..., None]
    # A sum over the tokens after j up to i, and never a difference of two sums: nothing cancels,
    # and minus infinity (a reset) stays minus infinity.
    logs = torch.where(after, one.unsqueeze(3), 0.0).cumsum(2)
    future = torch.ones(n, n, dtype=torch.bool, device=like.device).triu(1)[..., None]
    return logs.masked_fill(future, -math.inf).exp()


def decay_since_start(rate: Tensor | None, n: int, like: Tensor) -> Tensor:
    """Return the decay from before the first token to token `i`, `[b|1, h|1, n, d|1]`."""
    one = like.new_zeros(1, 1, 1, 1) if rate is None else rate
    return one.expand(*one.shape[:2], n, one.shape[3]).cumsum(2).exp()
