"""Key heads with larger norms get more queries: allocations sum to the heads, and do not fall."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regard.layers.allocation import KeyDriven, MovingAllocation, allocated
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap


def _fallen(norms_of: Callable[[int], Tensor]) -> tuple[int, int]:
    """Count, of 3,000 cases, allocations that are wrong, and such that fall as a norm grows."""
    wrong = fallen = 0
    for _ in range(3000):
        g = int(torch.randint(1, 9, ()))
        h = g * int(torch.randint(1, 9, ()))
        norms = norms_of(g)
        before = allocated(norms - norms.min(), h)
        wrong += int(before.sum() != h) + int(bool((before < 0).any()))
        one = int(torch.randint(0, g, ()))
        norms[one] *= 10
        fallen += int(allocated(norms - norms.min(), h)[one] < before[one])
    return wrong, fallen


@check("kdgqa")
def driven_groups() -> Claims:
    """Allocations always sum to the heads, and a larger norm does not lower one's own."""
    wrong, fallen = _fallen(lambda g: torch.randn(g, 64).norm(dim=1))
    # Norms over four decades: where rounding leaves too few heads, the least group gets one more,
    # and loses it again when it is not the least. No text has such keys.
    wrong_wide, fallen_wide = _fallen(
        lambda g: torch.rand(g) * 10 ** torch.empty(g).uniform_(-2, 2)
    )
    even = torch.ones(4)
    guarded = allocated(even - even.min(), 8).tolist() == [2] * 4
    average = MovingAllocation(32, heads=8, kv_heads=4, window=1)
    average.train().allocate(torch.ones(1, 4, 5, 4))
    uniform = average.allocation.tolist() == [2] * 4
    # Frozen, a text's answer does not depend on what else is in the batch.
    layer, x = KeyDriven(32, heads=8, kv_heads=4), torch.randn(3, 9, 32)
    layer(x)
    frozen = gap(layer.eval()(x)[:1], layer(x[:1]))
    yield claim(
        "Allocation always sums",
        "wrong of 6,000 allocations, norms over four decades included",
        wrong + wrong_wide,
    ).equals(0, "none")
    yield claim(
        "multiplying one group", "allocations that fall, of 3,000 norms of random keys", fallen
    ).equals(0, "none")
    yield claim(
        "multiplying one group",
        "allocations that fall, of 3,000 norms over four decades",
        fallen_wide,
    ).equals(0, "none")
    yield claim("Equal norms under", "equal norms share evenly", uniform).equals(
        True, "uniform GQA"
    )
    yield claim("under KDGQA min-max", "equal norms share evenly", guarded).equals(
        True, "uniform GQA"
    )
    yield claim(
        "under KDGQA min-max", "change of a row by others in the batch, frozen", frozen
    ).within(1e-6, "the row alone", because=FLOAT32)
