"""Even attention counts what is missing at any length; a window or few keys do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.support import Causal, Everything, Support, Window
from regard.core.top import top_slots
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.seeding import seed
from regard.run.api import attend
from regard.tasks.missing import Missing


def _counted(task: Missing, x: Tensor, support: Support, few: int | None = None) -> Tensor:
    """Answer by attending evenly to what a support allows: the item of least weight.

    With `few` the question reads the keys of the largest scores alone. Scores are even but for a
    ten-thousandth, which decides them, as in a model that was trained to be even.
    """
    n = x.shape[1]
    values = nn.functional.one_hot(x, task.items + 1).float()[:, None]
    q, k = torch.ones(len(x), 1, 1, 1), 1e-4 * torch.randn(len(x), 1, n, 1)
    last = Rule(support).shift(n - 1)  # the question alone looks
    if few is not None:
        keys = Dense(k, values).take(top_slots((q @ k.mT)[:, :, 0], few))
        seen = attend(q, keys, rule=last)
    else:
        seen = attend(q, k, values, last)
    seen = seen[:, 0, 0, : task.items]
    # Items of equal weight are all as good: one of them at random.
    even = 1e-2 / n  # weights differ by a ten-thousandth of 1 / n, and an item is worth 1 / n
    return (-(seen / even).round() + 0.5 * torch.rand(seen.shape)).argmax(1)


def _rarely(rows: int, share: float) -> int:
    """The count of hits in `rows` that chance, `share` each, exceeds in one of 1,000 runs."""
    likely, count = (1 - share) ** rows, 0
    while likely < 0.999:  # because: one of 1,000
        count += 1
        likely += math.comb(rows, count) * share**count * (1 - share) ** (rows - count)
    return count


@check("attention_overflow")
def missing() -> Claims:
    """Even attention counts what is missing at any length; a window or few keys do not."""
    scores: dict[int, tuple[float, ...]] = {}
    for items in (16, 64, 256, 1024):
        task = Missing(items=items)
        rows = 400 if items < 1000 else 100
        batch = task.batch(rows, seed())

        def scored(found: Tensor, task: Missing = task, batch: object = batch) -> float:
            # Typed object to be a default.
            answers = torch.zeros_like(batch.y)  # type: ignore[attr-defined]
            answers[:, -1] = found
            # Typed object to be a default.
            return task.score(answers, batch)  # type: ignore[arg-type]

        whole = scored(_counted(task, batch.x, Everything()))
        # A window of w items and the question leaves N - w that it has not seen.
        width = items // 2
        near = scored(_counted(task, batch.x, Causal() & Window(width + 1)))
        bound = 1 / (items - width)
        few = items // 4
        sparse = scored(_counted(task, batch.x, Everything(), few))
        chance = _rarely(rows, bound) / rows - bound
        scores[items] = (whole, near, bound, chance, sparse)
    for items, (whole, near, bound, chance, sparse) in scores.items():
        yield claim("A uniform-attention", f"accuracy of counting, {items} items", whole).equals(
            1.0, "every row"
        )
        yield claim(
            "A uniform-attention", f"accuracy of a window of half, {items} items", near
        ).at_most(
            bound, "1 / (N - w)", plus=chance, because="what chance exceeds in one of 1,000 runs"
        )
        yield claim(
            "a top-k sparse model",
            f"accuracy of the top quarter of the keys, {items} items",
            sparse,
        ).below(whole, "all keys")
