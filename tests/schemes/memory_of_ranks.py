"""The most memory that a rank takes for a call and its backward; run in processes."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Window
from regard.run.runner import run
from regard.schemes import Contiguous, ShardedKeys, peers_of


def _of_status(name: str) -> int:
    """A number of kB in what the system says of this process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def peak(tokens: int, scheme: str) -> int:
    """Bytes at the peak, above what the process held before it made its tokens."""
    peers, layout = peers_of(None), Contiguous(tokens, peers_of(None).world)
    rule, own = Rule(Causal() & Window(128)), len(layout.positions(peers.rank))

    def call(some: Contiguous) -> None:
        n = len(some.positions(peers.rank))
        q, k, v = (torch.randn(1, 8, n, 64).requires_grad_(True) for _ in range(3))
        keys = ShardedKeys.of(k, v, peers, layout=some, scheme=scheme)
        out = run(Call(q, keys, rule)).out
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    call(Contiguous(16 * peers.world, peers.world))  # what is loaded once is loaded
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _of_status("VmRSS")
    call(layout)
    assert own
    return _of_status("VmHWM") - before
