"""The meaning of a scan: one token at a time, as the equation is written."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.scan.scan_inputs import ScanTokens


def step(
    memory: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Forget, write and read once.

    `S = decay * S`, then `S = S + k u^T`, and `o = q S`, where `u = v`, or for the delta rule
    `u = beta (v - k S)`: the value's difference from what the memory already returns for `k`.

    `memory [b, h, d, e]`; `q`, `k` `[b, h, d]`; `v [b, h, e]`; `log_decay [b, h, 1]` or
    `[b, h, d]`; `beta [b, h]`. Returns `o [b, h, e]` and the new memory.

    >>> key = torch.tensor([[[1.0, 0.0]]])
    >>> out, memory = step(torch.zeros(1, 1, 2, 1), key, key, torch.full((1, 1, 1), 3.0))
    >>> out.item()
    3.0
    """
    if log_decay is not None:
        memory = log_decay.exp().unsqueeze(-1) * memory
    if beta is not None:
        v = beta.unsqueeze(-1) * (v - torch.einsum("bhd,bhde->bhe", k, memory))
    memory = memory + torch.einsum("bhd,bhe->bhde", k, v)
    return torch.einsum("bhd,bhde->bhe", q, memory), memory


def recurrent(tokens: ScanTokens, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Run every token through `step`: `out [b, h, n, e]` and the last memory `[b, h, d, e]`."""
    outs = []
    for t in range(tokens.q.shape[2]):
        out, memory = step(
            memory, tokens.q[:, :, t], tokens.k[:, :, t], tokens.v[:, :, t],
            at(tokens.log_decay, t), None if tokens.beta is None else tokens.beta[:, :, t],
        )  # fmt: skip
        outs.append(out)
    return torch.stack(outs, dim=2), memory


def at(rate: Tensor | None, t: int) -> Tensor | None:
    """Read a rate `[b, h, n|1, d|1]` at token `t`."""
    return None if rate is None else rate[:, :, t if rate.shape[2] > 1 else 0]
