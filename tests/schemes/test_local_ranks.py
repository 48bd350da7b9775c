"""Ranks that are threads of one process do not wait for each other's locks."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.core.call import Call
from regard.core.support import Causal, Sinks, Window, documents_from_lengths
from regard.run.counting import counted
from regard.schemes import Contiguous, ShardedKeys, ZigZag
from regard.schemes.local_ranks import on_ranks


def test_ranks_make_keys_dense_together() -> None:
    k, layout = torch.randn(1, 2, 12, 4), Contiguous(12, 3)

    def whole(peers: object) -> torch.Tensor:
        own = layout.take(k, peers.rank, 2)  # type: ignore[attr-defined]
        keys = ShardedKeys.of(own, own, peers, layout=layout)
        return Call(own, keys).k

    for found in on_ranks(3, whole, timeout=10.0):
        assert torch.equal(found, k)


DOCUMENTS = documents_from_lengths([400, 1200, 96, 1696, 704])


@pytest.mark.parametrize("layout", [Contiguous(4096, 2), ZigZag(4096, 2)])
@pytest.mark.parametrize(
    ("support", "most"),
    [
        (Causal() & DOCUMENTS, 1.15),
        (Causal() & Window(128), 1.55),
        (Causal() & (Window(128) | Sinks(4)), 1.55),
    ],
)
def test_a_ring_scores_little_more_than_the_pairs_of_the_rule(support, most, layout) -> None:
    """Whole tiles at the edges are all that may be added, forward and backward."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, 4096, 16) for h in (4, 2, 2))
    allowed = support.matrix(4096)[0, 0]

    def share(peers: object) -> list[float]:
        rank = peers.rank  # type: ignore[attr-defined]
        own = [layout.take(x, rank, 2).requires_grad_(True) for x in (q, k, v)]
        keys = ShardedKeys.of(own[1], own[2], peers, layout=layout, scheme="ring")
        exact, before = 4.0 * int(allowed[layout.positions(rank)].sum()), counted()
        out = regard.attend(own[0], keys, rule=regard.Rule(support))
        between = counted()
        out.sum().backward()
        return [between.less(before).pairs / exact, counted().less(between).pairs / exact]

    for rank in on_ranks(2, share, timeout=500.0):
        assert all(1.0 <= x <= most for x in rank), rank
