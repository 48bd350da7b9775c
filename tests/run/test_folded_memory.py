"""A fold holds the pieces of one part at a time, forward and backward."""

import pytest
import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Sinks, Support, Window
from regard.run import folded
from regard.run.runner import run
from tests.schemes.live_bytes import Live

HEADS, TOKENS, SIZE = 4, 4096, 32


def peak(support: Support, part: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Most bytes of tensors at once, forward and backward, with `part` bytes of keys a part."""
    monkeypatch.setattr(folded, "GATHERED", part)
    with Live() as seen:
        q, k, v = (torch.randn(1, HEADS, TOKENS, SIZE).requires_grad_(True) for _ in range(3))
        out = run(Call.of(q, k, v, Rule(support)), executor="folded").out
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    return seen.peak


@pytest.mark.parametrize(
    "support", [Causal() & Window(64), Causal() & (Window(64) | Sinks(4))], ids=str
)
def test_parts_are_freed(support: Support, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the peak is at the end, when gradients are put together: no part is alive by then.

    What was made of one part is freed before the next, and nothing is copied to be padded by 0.
    """
    small, large = (peak(support, part, monkeypatch) for part in (1 << 18, 1 << 22))
    assert large - small <= 1 << 19, (small, large)
