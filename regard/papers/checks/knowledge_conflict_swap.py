"""A model that learned facts says them against the passage; swaps in training cure it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.layers.building import model
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import restart, seed, seeds
from regard.papers.shared.small_trainer import fit
from regard.tasks.base import Task
from regard.tasks.conflict import Conflict


@check("knowledge_conflict_swap", beyond="real questions and entities")
def conflict() -> Claims:
    """A model that learned facts says them against the passage; swaps in training cure it."""
    task = Conflict(swap="corpus")
    held = seed()
    batch = task.batch(2000, held)
    faithful = task.memorization(task.oracle(batch), batch)
    stubborn = task.memorization(task.learned(batch), batch)
    renamed = replace(task, swap="alias").batch(2000, held)
    plain = replace(task, swap="none").batch(2000, held)
    types = bool((task.type_of(renamed.y[:, -1]) == task.type_of(plain.y[:, -1])).all())

    def trained(tasks: list[Task], steps: int) -> nn.Module:
        restart()
        # Tasks here have inputs with a count.
        count = task.inputs.count  # type: ignore[attr-defined]
        net = model(["mha"] * 2, dim=64, heads=4, vocab=count, position="rotary", tied=False)
        drawn = seeds()

        def loss() -> Tensor:
            step = next(drawn)
            batch = tasks[step % len(tasks)].batch(64, step)
            return task.loss(net(batch.x), batch)

        fit(net.parameters(), loss, steps, 3e-3)
        return net

    def ratio(net: nn.Module) -> float:
        with torch.no_grad():
            answers = net(batch.x).argmax(-1)
        return task.memorization(answers, batch)

    # Half of the rows ask for the fact with no passage, half with one that is true.
    learns = replace(task, swap="none", closed=0.5)
    memory = ratio(trained([learns], 200))
    mixed = ratio(trained([learns, task], 300))
    yield claim("A tiny model pretrained", "ratio on swapped passages", memory).above(
        0, "none", plus=0.1, because="2,000 passages: far over its spread"
    )
    yield claim("A tiny model pretrained", "ratio with swaps mixed into training", mixed).below(
        memory, "without", times=1 / 3, because="the paper's cure: at most a third"
    )
    yield claim("a model always copying", "ratio of copying the passage", faithful).equals(0, "0")
    yield claim("a model always copying", "ratio of ignoring it", stubborn).equals(1, "1")
    yield claim("alias swaps", "types of answers kept", types).equals(True, "all")
