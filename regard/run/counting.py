"""Work of attention, counted where kernels are called; and a record of every call that was run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from regard.core.call import Call
from regard.core.result import Counted, Result


class _Count(threading.local):
    """What this thread has computed since it began, and how deep in `run` it is."""

    pairs = 0.0
    flops = 0.0
    bytes = 0.0
    depth = 0
    records: tuple[list[Ran], ...] = ()


COUNT = _Count()


class Ran(NamedTuple):
    """One call that was run, and what came of it."""

    call: Call
    result: Result


def count(pairs: float, width: int, moved: float) -> None:
    """Add the scores of `pairs`, `width` channels of keys and values each, and bytes moved."""
    COUNT.pairs += pairs
    COUNT.flops += 2.0 * pairs * width
    COUNT.bytes += moved


def bytes_of(*tensors: Tensor) -> int:
    """Count the bytes of tensors; `Tensor.nbytes` raises in compiled code whose sizes are symbols.

    >>> import torch
    >>> bytes_of(torch.zeros(2, 3), torch.zeros(4, dtype=torch.float64))
    56
    """
    total = 0
    for x in tensors:
        total += x.numel() * x.element_size()
    return total


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of [..., n, x] and [..., x, m], counted: work beside pairs, as choosing keys is.

    >>> import torch
    >>> before = counted()
    >>> multiply(torch.ones(2, 3, 4), torch.ones(4, 5)).shape, counted().less(before).flops
    (torch.Size([2, 3, 5]), 240.0)
    """
    made = a @ b
    COUNT.flops += 2.0 * made.numel() * a.shape[-1]
    return made


def counted() -> Counted:
    """Return what this thread has computed since it began.

    >>> import torch, regard
    >>> q, before = torch.randn(1, 2, 3, 8), counted()
    >>> out = regard.attend(q, q, q)
    >>> counted().less(before).flops == 2 * (2 * 3 * 3) * (8 + 8)
    True
    """
    return Counted(COUNT.pairs, COUNT.flops, COUNT.bytes)


@contextmanager
def recording() -> Iterator[list[Ran]]:
    """Record every call that this thread runs; what runs as a part of another is not listed.

    >>> import torch, regard
    >>> q = torch.randn(1, 2, 3, 8)
    >>> with recording() as ran:
    ...     out = regard.attend(q, q, q)
    >>> [one.result.executor for one in ran]
    ['fused']
    """
    made: list[Ran] = []
    before = COUNT.records
    COUNT.records = (*before, made)
    try:
        yield made
    finally:
        COUNT.records = before


__all__ = ["COUNT", "Ran", "bytes_of", "count", "counted", "multiply", "recording"]
