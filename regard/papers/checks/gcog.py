"""The evaluator solves every split, and neither guesses nor distractors change that."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.bench.backbone import Backbone
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import generator, restart, seed
from regard.papers.shared.posed import score, train
from regard.tasks.base import Batch
from regard.tasks.scenes import EXIST, Scenes


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


@check(
    "gcog",
    long=True,
    narrowed={"Tiny cross-attention": "5 x 5 cells; the GRU is small, and may learn little"},
)
def scenes() -> Claims:
    """The evaluator solves every split, and neither guesses nor distractors change that."""
    solved, moved = [], 0
    splits = [Scenes(depth=d) for d in (1, 3, 5, 7)] + [
        Scenes(held_out=True),
        Scenes(distractors=30),
    ]
    for task in splits:
        batch = task.batch(200, seed())
        solved.append(task.score(task.oracle(batch), batch))
        moved += int((task.oracle(_without_distractors(task, batch)) != batch.y)[batch.asked].sum())
    task = Scenes()
    random = generator()
    guesses = [
        task.score(task.guess(b, random), b) for b in (task.batch(200, random) for _ in range(40))
    ]
    guess = sum(guesses) / len(guesses)
    answers = torch.cat([task.batch(500, seed()).y[:, -1] for _ in range(4)])
    yes = torch.cat(
        [b.y[:, -1][b.x[:, -4] == EXIST] for b in (task.batch(500, seed()) for _ in range(4))]
    )

    small = Scenes(side=5, shapes=6, colors=5, distractors=3)
    far = replace(small, distractors=20)
    answers = small.batch(2000, seed()).y[:, -1]
    prior_small = float(answers.bincount().max() / len(answers))
    restart()
    cross, gru = Backbone("mha", small, "nc"), _Recurrent(small)
    train(cross, small, 1500, cross)
    train(gru, small, 1500, gru)
    numbers = {}
    for name, net in (("cross-attention", cross), ("GRU", gru)):
        for split, posed in (("3 distractors", small), ("20 distractors", far)):
            numbers[f"{name}, {split}"] = score(posed, net)
    yield claim(
        "A symbolic evaluator", "least score of the evaluator, six splits", min(solved)
    ).equals(1.0, "always right")
    yield claim("A symbolic evaluator", "answers moved by taking distractors away", moved).equals(
        0, "none"
    )
    yield claim("A symbolic evaluator", "score of guesses by the prior", guess).within(
        0.01, "chance", value=task.chance, because="8,000 guesses: two standard errors"
    )
    yield claim(
        "A symbolic evaluator",
        "share of existence questions that are true",
        float(yes.double().mean()),
    ).within(0.05, "half", value=0.5, because="about 600 questions: two standard errors")
    yield claim(
        "Tiny cross-attention",
        "accuracy with 20 distractors",
        numbers["cross-attention, 20 distractors"],
    ).above(numbers["GRU, 20 distractors"], "a GRU, trained alike")
    yield claim(
        "Tiny cross-attention",
        "accuracy of the GRU where it was trained",
        numbers["GRU, 3 distractors"],
    ).above(
        prior_small,
        "the most usual answer",
        plus=0.05,
        because="or it would be beaten for having learned nothing",
    )
