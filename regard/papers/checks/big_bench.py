"""Solvers score 100 and guesses 0 on every generator; brackets need order, and a long view."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.bench.backbone import Backbone
from regard.bench.statistics import above_chance
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import generator, restart, seed
from regard.papers.shared.posed import score, train
from regard.tasks.base import Batch
from regard.tasks.programs import Dyck
from regard.tasks.registry import task as make_task

GENERATED = ("dyck", "tracking", "sort", "navigate", "lookup", "list_ops", "copy")


class _Bag(nn.Module):
    """Answers from how often each token came so far, whatever their order."""

    def __init__(self, task: Dyck) -> None:
        super().__init__()
        self.count = task.kinds + 1
        self.net = nn.Sequential(nn.Linear(self.count, 64), nn.ReLU(), nn.Linear(64, task.kinds))

    def forward(self, batch: Batch) -> Tensor:
        bags: Tensor = self.net(nn.functional.one_hot(batch.x, self.count).float().cumsum(1))
        return bags


def _through_window(task: Dyck, width: int) -> float:
    """What the solver scores that reads the last `width` tokens alone, and guesses where lost."""
    batch = task.batch(300, seed())
    right = []
    for i in range(task.length):
        rows = batch.asked[:, i]
        near = batch.x[:, max(0, i + 1 - width) : i + 1]
        solved = task.oracle(Batch(near, near, near == task.kinds))[:, -1]
        right.append((solved == batch.y[:, i])[rows])
    return float(torch.cat(right).double().mean())


@check("big_bench", beyond="the 200 other tasks; grading by log-likelihood of choices")
def generated() -> Claims:
    """Solvers score 100 and guesses 0 on every generator; brackets need order, and a long view."""
    guesses: dict[str, float] = {}
    solved, twice = [], 0
    for name in GENERATED:
        task = make_task(name)
        random = generator()
        batches = [task.batch(300, random) for _ in range(100)]
        solved += [above_chance(task.score(task.oracle(b), b), task.chance) for b in batches[:3]]
        scores = [task.score(task.guess(b, random), b) for b in batches]
        guess = 100 * above_chance(sum(scores) / len(scores), task.chance)
        guesses[name] = guess
        a, b = (task.batch(50, seed_) for seed_ in (seed(), seed()))
        twice += int(a.x.shape == b.x.shape and bool((a.x == b.x).all()))
    restart()
    task = Dyck(length=24, depth=4)
    net = Backbone("mha", task, "cs", dim=32)
    train(net, task, 250, net)
    bag = _Bag(task)
    train(bag, task, 250, bag)
    attention, counts = score(task, net), score(task, bag)
    sizes = (12, 24, 48, 96)
    lengths = [_through_window(Dyck(length=n, depth=6), 12) for n in sizes]
    yield claim("Reference solvers", "least score of reference solvers", min(solved)).equals(
        1.0, "100"
    )
    for name, guess in guesses.items():
        yield claim("Reference solvers", f"guesses, normalized, {name}", guess).within(
            2, "0", because=CATALOGUE
        )
    yield claim("duplicate-free seeds", "batches that two seeds share", twice).equals(0, "none")
    yield claim("A 2-layer toy", "accuracy on brackets", attention).above(
        counts,
        "counts of tokens, trained alike",
        plus=0.1,
        because="ten points: far over the spread of 500 rows",
    )
    for a, b, n in zip(lengths, lengths[1:], sizes[1:], strict=False):
        yield claim("lengthening inputs", f"accuracy through 12 tokens, length {n}", b).below(
            a, "at half the length"
        )
