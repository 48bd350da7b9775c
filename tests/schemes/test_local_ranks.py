"""Ranks that are threads of one process do not wait for each other's locks."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.schemes import Contiguous, ShardedKeys
from regard.schemes.local_ranks import on_ranks


def test_ranks_make_keys_dense_together() -> None:
    k, layout = torch.randn(1, 2, 12, 4), Contiguous(12, 3)

    def whole(peers: object) -> torch.Tensor:
        own = layout.take(k, peers.rank, 2)  # type: ignore[attr-defined]
        keys = ShardedKeys.of(own, own, peers, layout=layout)
        return Call(own, keys).k

    for found in on_ranks(3, whole, timeout=10.0):
        assert torch.equal(found, k)
