"""Checks of rows about following rules, and about passages that contradict what was learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.bench.backbone import Backbone
from regard.bench.statistics import above_chance
from regard.layers.building import model
from regard.papers.checks import Measured, check
from regard.papers.checks.training import draws, fit, seed_again
from regard.tasks.base import Batch, Task
from regard.tasks.conflict import Conflict
from regard.tasks.programs import Dyck
from regard.tasks.registry import task as make_task
from regard.tasks.scenes import EXIST, Scenes

GENERATED = ("dyck", "tracking", "sort", "navigate", "lookup", "list_ops", "copy")


def _train(net: nn.Module, task: Task, steps: int, say: Callable[[Batch], Tensor]) -> None:
    drawn = draws()

    def loss() -> Tensor:
        batch = task.batch(64, next(drawn))
        return task.loss(say(batch), batch)

    fit(net.parameters(), loss, steps, 3e-3)


def _score(task: Task, say: Callable[[Batch], Tensor], rows: int = 500) -> float:
    batch = task.batch(rows, 2**40)
    with torch.no_grad():
        return task.score(task.answers(say(batch)), batch)


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
    batch = task.batch(300, 5)
    right = []
    for i in range(task.length):
        rows = batch.asked[:, i]
        near = batch.x[:, max(0, i + 1 - width) : i + 1]
        solved = task.oracle(Batch(near, near, near == task.kinds))[:, -1]
        right.append((solved == batch.y[:, i])[rows])
    return float(torch.cat(right).double().mean())


@check("big_bench")
def generated() -> Measured:
    """Solvers score 100 and guesses 0 on every generator; brackets need order, and a long view."""
    numbers: dict[str, float] = {}
    solved, guessed, twice = [], [], 0
    for name in GENERATED:
        task = make_task(name)
        random = torch.Generator().manual_seed(0)
        batches = [task.batch(300, random) for _ in range(100)]
        solved += [above_chance(task.score(task.oracle(b), b), task.chance) for b in batches[:3]]
        scores = [task.score(task.guess(b, random), b) for b in batches]
        guess = 100 * above_chance(sum(scores) / len(scores), task.chance)
        numbers[f"{name}, guesses (normalized)"] = guess
        guessed.append(guess)
        a, b = (task.batch(50, seed) for seed in (1, 2))
        twice += int(a.x.shape == b.x.shape and bool((a.x == b.x).all()))
    seed_again()
    task = Dyck(length=24, depth=4)
    net = Backbone("mha", task, "cs", dim=32)
    _train(net, task, 250, net)
    bag = _Bag(task)
    _train(bag, task, 250, bag)
    attention, counts = _score(task, net), _score(task, bag)
    sizes = (12, 24, 48, 96)
    lengths = [_through_window(Dyck(length=n, depth=6), 12) for n in sizes]
    falls = lengths == sorted(lengths, reverse=True) and len(set(lengths)) == 4
    return Measured(
        "on seven generators reference solvers score 100 and guesses 0 within 2 (normalized), and "
        "two seeds never give the same batch; a two-layer transformer trained on brackets nested 4 "
        "deep beats a model of token counts by over 10 points; a solver that sees 12 tokens falls "
        "with each doubling of the length",
        min(solved) == 1.0 and max(map(abs, guessed)) < 2 and not twice
        and attention > counts + 0.1 and falls,
        {**numbers, "brackets, attention": attention, "brackets, counts of tokens": counts,
         **{f"window of 12, length {n}": x for n, x in zip(sizes, lengths, strict=True)}},
        left_out="the 200 other tasks and language models; grading by log-likelihood of choices",
    )  # fmt: skip


class _Recurrent(nn.Module):
    """A GRU that reads the picture, cell by cell, and then the question."""

    def __init__(self, task: Scenes, dim: int = 64) -> None:
        super().__init__()
        words, cells, answers = (k.count for k in (task.inputs, task.contexts, task.outputs))  # type: ignore[union-attr]
        self.words, self.cells = nn.Embedding(words, dim), nn.Embedding(cells, dim)
        self.net = nn.GRU(dim, dim, num_layers=2, batch_first=True)
        self.head = nn.Linear(dim, answers)

    def forward(self, batch: Batch) -> Tensor:
        assert batch.context is not None
        read = torch.cat((self.cells(batch.context), self.words(batch.x)), 1)
        answers: Tensor = self.head(self.net(read)[0][:, batch.context.shape[1] :])
        return answers


def _without_distractors(task: Scenes, batch: Batch) -> Batch:
    """The same scenes with every object taken away that no question names by shape or color."""
    assert batch.context is not None
    pictures = batch.context.clone()
    for row, text in enumerate(batch.x.tolist()):
        shapes = {t - 7 for t in text if 7 <= t < 7 + task.shapes}
        colors = {t - 7 - task.shapes for t in text if t >= 7 + task.shapes}
        for cell, thing in enumerate(pictures[row].tolist()):
            shape, color = divmod(thing - 1, task.colors)
            if thing and shape not in shapes and color not in colors:
                pictures[row, cell] = 0
    return replace(batch, context=pictures)


@check("gcog", long=True)
def scenes() -> Measured:
    """The evaluator solves every split, and neither guesses nor distractors change that."""
    solved, moved = [], 0
    splits = [Scenes(depth=d) for d in (1, 3, 5, 7)] + [
        Scenes(held_out=True),
        Scenes(distractors=30),
    ]
    for task in splits:
        batch = task.batch(200, 1)
        solved.append(task.score(task.oracle(batch), batch))
        moved += int((task.oracle(_without_distractors(task, batch)) != batch.y)[batch.asked].sum())
    task = Scenes()
    random = torch.Generator().manual_seed(0)
    guesses = [
        task.score(task.guess(b, random), b) for b in (task.batch(200, random) for _ in range(40))
    ]
    guess = sum(guesses) / len(guesses)
    answers = torch.cat([task.batch(500, s).y[:, -1] for s in range(4)])
    prior = float(answers.bincount().max() / len(answers))
    yes = torch.cat(
        [b.y[:, -1][b.x[:, -4] == EXIST] for b in (task.batch(500, s) for s in range(4))]
    )

    small = Scenes(side=5, shapes=6, colors=5, distractors=3)
    far = replace(small, distractors=20)
    seed_again()
    cross, gru = Backbone("mha", small, "nc"), _Recurrent(small)
    _train(cross, small, 1500, cross)
    _train(gru, small, 1500, gru)
    numbers = {}
    for name, net in (("cross-attention", cross), ("GRU", gru)):
        for split, posed in (("3 distractors", small), ("20 distractors", far)):
            numbers[f"{name}, {split}"] = _score(posed, net)
    return Measured(
        "on four depths, held-out pairs and 30 distractors the evaluator is always right, and "
        "taking "
        "distractors away changes no answer; guessing by the distribution of answers is at chance, "
        "half of the existence questions are true (0.45 to 0.55); trained alike with 3 "
        "distractors, "
        "cross-attention is ahead of a GRU with 20",
        min(solved) == 1.0 and moved == 0 and abs(guess - task.chance) < 0.01
        and 0.45 < float(yes.double().mean()) < 0.55
        and numbers["cross-attention, 20 distractors"] > numbers["GRU, 20 distractors"],
        {"solved, least": min(solved), "answers moved by distractors": moved, "guesses": guess,
         "chance": task.chance, "most usual answer": prior, "yes": float(yes.double().mean()),
         **numbers},
        left_out="Perceivers and dual streams, deeper programs, and systematic splits for trained "
        "models; 5 x 5 cells; other seeds are in benchmarks/results/orderings.json",
    )  # fmt: skip


@check("knowledge_conflict_swap")
def conflict() -> Measured:
    """A model that learned facts says them against the passage; swaps in training cure it."""
    task = Conflict(swap="corpus")
    batch = task.batch(2000, 2**40)
    faithful = task.memorization(task.oracle(batch), batch)
    stubborn = task.memorization(task.learned(batch), batch)
    renamed = replace(task, swap="alias").batch(2000, 2**40)
    plain = replace(task, swap="none").batch(2000, 2**40)
    types = bool((task.type_of(renamed.y[:, -1]) == task.type_of(plain.y[:, -1])).all())

    def trained(tasks: list[Task], steps: int) -> nn.Module:
        seed_again()
        count = task.inputs.count  # type: ignore[attr-defined]
        net = model(["mha"] * 2, dim=64, heads=4, vocab=count, position="rotary", tied=False)
        drawn = draws()

        def loss() -> Tensor:
            step = next(drawn)
            batch = tasks[step % len(tasks)].batch(64, step)
            return task.loss(net(batch.x), batch)

        fit(net.parameters(), loss, steps, 3e-3)
        return net

    def ratio(net: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            answers = net(batch.x).argmax(-1)
        return task.memorization(answers, batch), task.score(answers, batch)

    # Half of the rows ask for the fact with no passage, half with one that is true.
    learns = replace(task, swap="none", closed=0.5)
    memory, _ = ratio(trained([learns], 200))
    mixed, right = ratio(trained([learns, task], 300))
    return Measured(
        "a model that copies the passage has a memorization ratio of 0, one that ignores it of 1; "
        "aliases leave every answer's type as it was; a tiny model trained on 200 facts, with and "
        "without true passages, answers from memory on swapped ones (ratio over 0.1); with swapped "
        "passages mixed into training the ratio is under a third of that",
        faithful == 0 and stubborn == 1 and types and memory > 0.1 and mixed < memory / 3,
        {"copies the passage": faithful, "ignores it": stubborn, "types kept by aliases": types,
         "ratio, true passages": memory, "ratio, swaps mixed in": mixed,
         "answers from the passage, swaps mixed in": right},
        left_out="real questions and entities; facts are pairs of tokens",
    )  # fmt: skip
