"""A fold holds the pieces of one part at a time, forward and backward."""

import pytest
import torch

from regard.bench.live_bytes import Live
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Sinks, Support, Window
from regard.run import folded
from regard.run.runner import run

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
    """What was made of one part is freed before the next: its keys and values, and their gradients.

    With the last part alive, too, the peak under the window grew by 2.4 sizes of a part.
    """
    few, many = 1 << 18, 1 << 22
    small, large = (peak(support, part, monkeypatch) for part in (few, many))
    assert large - small <= 2 * (many - few), (small, large)
