"""Checks of rows about what is kept between requests, turns, threads and machines."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_mask(met: Tensor) -> Tensor:
    """A mask for a model of transformers, of which pairs [n, m] may meet."""
    return torch.zeros(met.shape).masked_fill(~met, torch.finfo(torch.float32).min)[None, None]
