"""A fast top-k for long rows on a CPU."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Rows shorter than this are left to PyTorch.
LONG = 4096
SAMPLE = 1024


def top_slots(x: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest of each row of x [..., m], [..., count], unordered.

    On a CPU, a sample of a long row gives a threshold that slightly more than `count` pass, and
    only those are compared: PyTorch's `topk` reads every entry many times.

    >>> top_slots(torch.tensor([[1.0, 7.0, 3.0]]), 2).sort().values.tolist()
    [[1, 2]]
    """
    m = x.shape[-1]
    if x.device.type != "cpu" or m < LONG or 4 * count > m or x.dtype != torch.float32:
        return x.topk(count, dim=-1, sorted=False).indices
    rows = x.detach().reshape(-1, m)
    sample = rows[:, :: m // SAMPLE]
    wanted = count * sample.shape[1] / m
    rank = min(sample.shape[1], math.ceil(wanted + 3 * math.sqrt(wanted)) + 1)
    floors = sample.topk(rank, dim=-1).values[:, -1].tolist()
    found = x.new_empty(len(rows), count, dtype=torch.long)
    for row, floor, out in zip(rows, floors, found, strict=True):
        passed = torch.from_numpy(np.flatnonzero(row.numpy() >= floor))
        if len(passed) < count:  # the sample misled, or there are NaNs
            out.copy_(row.topk(count, sorted=False).indices)
        else:
            best = row.index_select(0, passed).topk(count, sorted=False).indices
            torch.index_select(passed, 0, best, out=out)
    return found.view(*x.shape[:-1], count)
