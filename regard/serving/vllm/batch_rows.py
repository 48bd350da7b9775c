"""The rows of a batch of vLLM: one for each request that has new tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, fail
from regard.serving.vllm.hooks import current
from regard.serving.vllm.served_requests import Served


class BatchRow(NamedTuple):
    """One request of a batch: its tokens [start, start + n), the newest of `seen`."""

    start: int
    n: int
    seen: int
    # Numbers of its blocks, int [1, 1, blocks].
    table: Tensor
    served: Served | None
    # Which row of the batch it is.
    number: int
    # `seen`, as Keys count it, [1, 1].
    lengths: Tensor


def causal_alone(common: Any) -> None:
    """Refuse a batch that is not causal."""
    if isinstance(common.causal, Tensor) or not common.causal:
        fail(
            CapabilityError, "causal", "a batch that attends to what comes later",
            "causal decoding", "serve this model without Regard: unset REGARD",
        )  # fmt: skip


def rows_of(common: Any, block: int) -> list[BatchRow]:
    """Read the rows of a batch that have new tokens: lengths, blocks, and whose they are."""
    starts = common.query_start_loc_cpu.tolist()
    seen = common.seq_lens.tolist()
    table = common.block_table_tensor
    served = current().rows(common.num_reqs)
    rows = []
    for i in range(common.num_reqs):
        n = starts[i + 1] - starts[i]
        if n > 0:
            own = table[i : i + 1, None, : -(-seen[i] // block)]
            length = torch.tensor([[seen[i]]])
            rows.append(BatchRow(starts[i], n, seen[i], own, served[i], i, length))
    return rows
