"""How an older memory passes through the tokens of a delta rule segment, as a matrix."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regard.core.scan.chunked_scan import chunked
from regard.core.scan.scan_inputs import Rate, prepare


def transition(
    k: Tensor,
    *,
    beta: Rate,
    log_decay: Rate | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    chunk: int = 64,
) -> Tensor:
    """Return the product of `(I - beta_t k_t k_t^T) decay_t` over the tokens: `[b, g, d, d]`.

    `k [b, g, n, d]`, whose heads are those of the memory (repeat them first for grouped heads).
    The memory is linear in the one that enters, so this is what a scan that writes nothing
    makes of the identity. Costs as much as the scan itself; needed only to compose states.

    >>> k = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    >>> transition(k, beta=1.0)[0, 0]  # what was stored along k is gone
    tensor([[0., 0.],
            [0., 1.]])
    """
    tokens = prepare(k, k, k, log_decay=log_decay, beta=beta, keep=keep, reset=reset)
    b, h, _, d = k.shape
    unit = torch.eye(d, dtype=tokens.k.dtype, device=k.device).expand(b, h, d, d)
    _, passed = chunked(replace(tokens, v=torch.zeros_like(tokens.v)), unit, chunk)
    return passed
