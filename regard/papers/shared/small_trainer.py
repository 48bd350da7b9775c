"""A small trainer for claims that need training."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    steps: int,
    rate: float = 3e-3,
    decay: float = 0.0,
) -> list[float]:
    """Lower the loss of freshly drawn batches by AdamW, its rate falling to zero; give the losses.

    `loss()` draws a batch and gives its loss, a scalar.
    """
    held = list(parameters)
    adam = torch.optim.AdamW(held, rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
    losses = []
    for _ in range(steps):
        now = loss()
        adam.zero_grad()
        now.backward()
        nn.utils.clip_grad_norm_(held, 1.0)
        adam.step()
        schedule.step()
        losses.append(float(now.detach()))
    return losses
