"""Two hops need two, answers stand once, and a window finds its share of depths."""

from __future__ import annotations

import torch

from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.seeding import seed
from regard.tasks.hops import Hops, seen_by_window
from regard.tasks.recall import Needle


@check("longagent_needle_plus", same="counts and fractions that hold whatever is drawn")
def hops() -> Claims:
    """Two hops need two, answers stand once, and a window finds its share of depths."""
    two, one = Hops(hops=2, chains=4), Hops(hops=1, chains=4)
    b2, b1 = two.batch(2000, seed()), one.batch(2000, seed())
    answer = b2.y[:, -1:]
    unique = bool(((b2.x[:, :-1] == answer).sum(1) == 1).all())
    solved = (one.score(one.followed(b1, 1), b1), two.score(two.followed(b2, 2), b2))
    short = two.score(two.followed(b2, 1), b2)

    width, length = 40, 64
    found, inside = [], []
    for depth in range(0, 62, 3):
        task = Needle(length=length, depth=depth / 61)
        batch = task.batch(20, seed())
        answers = seen_by_window(batch.x, width).where(batch.asked, 0)
        found.append(task.score(answers, batch))
        inside.append(float(int(batch.x[0].eq(1).to(torch.uint8).argmax()) > length - 1 - width))
    share, fraction = sum(found) / len(found), sum(inside) / len(inside)
    yield claim("Generator: answers", "of 2,000 rows each holds its answer once", unique).equals(
        True, "unique"
    )
    yield claim("a two-layer induction solver", "one hop by following one pair", solved[0]).equals(
        1.0, "all"
    )
    yield claim("a two-layer induction solver", "two hops by following two", solved[1]).equals(
        1.0, "all"
    )
    yield claim("a two-layer induction solver", "two hops by following one", short).at_most(
        two.chance, "chance"
    )
    yield claim("windowed attention", "recall through 40 of 64 tokens", share).within(
        1e-9, "fraction of depths inside", value=fraction, because=FLOAT64
    )
