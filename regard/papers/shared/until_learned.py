"""Train until something is learned, and no longer: for claims about models that can do a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def fit_until(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    enough: float,
    most: int,
    rate: float = 3e-3,
    cool: int = 50,
) -> int:
    """Lower the loss of fresh batches by AdamW until it is `enough`; return the steps it took.

    Losses are averaged over about ten steps. When they are low enough, or after `most` steps, the
    rate falls to zero over `cool` more. `loss()` draws a batch and gives its loss, a scalar.
    """
    held = list(parameters)
    adam = torch.optim.AdamW(held, rate, weight_decay=0.0, fused=True)
    recent, left, steps = float("inf"), -1, 0
    while left:
        now = loss()
        adam.zero_grad()
        now.backward()
        nn.utils.clip_grad_norm_(held, 1.0)
        adam.step()
        steps, left = steps + 1, left - 1
        value = float(now.detach())
        recent = value if steps == 1 else 0.9 * recent + 0.1 * value
        if left < 0 and (recent < enough or steps >= most):
            left = cool
        if left >= 0:
            adam.param_groups[0]["lr"] = rate * left / cool
    return steps
