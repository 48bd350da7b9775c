"""Checks of rows that a rule alone runs: a weigh, a bias, or a support."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias, -1) @ v
