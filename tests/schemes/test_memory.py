"""A rank takes less memory the more ranks there are: tensors counted, and as the system counts."""

import sys
from pathlib import Path

import pytest
import torch

from regard.bench.live_bytes import Live
from regard.bench.measuring import slope
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Window
from regard.run.runner import run
from regard.schemes import Contiguous, Layout, ShardedKeys, ZigZag
from regard.schemes.local_processes import Job, launch
from regard.schemes.local_ranks import on_ranks
from regard.schemes.messages import Peers

WORKER = Path(__file__).parent / "memory_of_ranks.py"
# One rank alone sends nothing, and makes no room for what arrives: ranks are counted from two.
WORLDS, TOKENS = (2, 4, 8), 16_384
FEW, HEADS, SIZE = 1024, 8, 16


def alive(rule: Rule, layout: Layout, scheme: str) -> int:
    """Bytes of the tensors of the rank that has most at once, forward and backward, its own too."""

    def one(peers: Peers) -> int:
        with Live() as seen:
            n = len(layout.positions(peers.rank))
            q, k, v = (torch.randn(1, HEADS, n, SIZE).requires_grad_(True) for _ in range(3))
            keys = ShardedKeys.of(k, v, peers, layout=layout, scheme=scheme)
            out = run(Call(q, keys, rule)).out
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        return seen.peak

    return max(on_ranks(layout.world, one))


@pytest.mark.parametrize("kind", [Contiguous, ZigZag])
@pytest.mark.parametrize("scheme", ["ring", "burst", "gather", "heads"])
def test_tensors_of_a_rank_fall_as_one_over_the_ranks(scheme: str, kind: type[Layout]) -> None:
    """Under a window a rank needs few keys of others, so a rank that gathers holds few."""
    rule = Rule(Causal() & Window(16))
    peaks = [alive(rule, kind(FEW, w), scheme) for w in WORLDS]
    assert -slope(WORLDS, peaks) >= 0.9, peaks


@pytest.mark.parametrize("kind", [Contiguous, ZigZag])
@pytest.mark.parametrize("world", WORLDS)
def test_a_rank_that_gathers_holds_the_keys_that_it_needs(world: int, kind: type[Layout]) -> None:
    """Three times at most: the keys, their gradients, and those of a block; and nine of its own.

    Where a rule leaves no keys out these are the keys of all ranks, which do not become fewer:
    `gather` cannot hold 1 / world of them. A ring can, and does.
    """
    layout = kind(FEW, world)
    own = 4 * HEADS * (FEW // world) * SIZE
    gathered = 2 * 4 * HEADS * FEW * SIZE
    found = alive(Rule(Causal()), layout, "gather")
    assert found > gathered, "what is gathered is seen"
    assert found <= 1.05 * (3 * gathered + 9 * own), found / own


@pytest.mark.parametrize("scheme", ["ring", "burst"])
def test_a_rank_of_a_ring_takes_as_much_however_many_ranks_there_are(scheme: str) -> None:
    """With keys of all ranks: one block, and gradients on their way home, are at hand at a time."""
    own = 32
    few, many = (alive(Rule(), Contiguous(own * w, w), scheme) for w in (8, 16))
    assert many <= 1.02 * few, (few, many)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("scheme", ["ring", "gather"])
def test_the_peak_of_a_rank_falls_as_one_over_the_ranks(scheme: str) -> None:
    wanted = {"ring": 0.9, "gather": 0.75}[scheme]
    # What else a process does adds to its peak and takes nothing off: the least of three counts,
    # or of fewer where these are low enough.
    peaks = [sys.maxsize] * len(WORLDS)
    for _ in range(3):
        jobs = [Job(w, f"{WORKER}:peak", (TOKENS, scheme), timeout=200) for w in WORLDS]
        ended = launch(jobs)
        for ends in ended:
            for one in ends:
                assert one.code == 0, one.errors[-3000:]
        found = [max(one.result for one in ends) for ends in ended]
        peaks = [min(x) for x in zip(peaks, found, strict=True)]
        if -slope(WORLDS, peaks) >= wanted:
            break
    assert peaks[0] > 8 * 4 * 8 * TOKENS * 64 / 2, "tensors of half the tokens are seen"
    # A rank that gathers holds all keys, which do not fall: 0.75 to 1.0 was seen, with the system's
    # own counting. The tensors counted above hold it to its formula.
    assert -slope(WORLDS, peaks) >= wanted, peaks
