"""Train on a task of the library, and score it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from regard.papers.seeding import seed, seeds
from regard.papers.shared.small_trainer import fit
from regard.tasks.base import Batch, Task


def train(net: nn.Module, task: Task, steps: int, say: Callable[[Batch], Tensor]) -> None:
    """Lower the loss of `net` on fresh batches of a task."""
    drawn = seeds()

    def loss() -> Tensor:
        batch = task.batch(64, next(drawn))
        return task.loss(say(batch), batch)

    fit(net.parameters(), loss, steps, 3e-3)


def score(task: Task, say: Callable[[Batch], Tensor], rows: int = 500) -> float:
    """Score answers to fresh rows."""
    batch = task.batch(rows, seed())
    with torch.no_grad():
        return task.score(task.answers(say(batch)), batch)
