"""Checks of rows about following rules, and about passages that contradict what was learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from regard.papers.checks.training import fit
from regard.papers.seeding import seeds
from regard.tasks.base import Batch, Task


def _train(net: nn.Module, task: Task, steps: int, say: Callable[[Batch], Tensor]) -> None:
    drawn = seeds()

    def loss() -> Tensor:
        batch = task.batch(64, next(drawn))
        return task.loss(say(batch), batch)

    fit(net.parameters(), loss, steps, 3e-3)


def _score(task: Task, say: Callable[[Batch], Tensor], rows: int = 500) -> float:
    batch = task.batch(rows, 2**40)
    with torch.no_grad():
        return task.score(task.answers(say(batch)), batch)
