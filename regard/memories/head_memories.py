"""Keys of each head kept for themselves, where heads need different ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.keys import Dense
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, need_keys
from regard.memories.full import Full


class HeadMemories(KeyMemory):
    """A memory for each key head, so that each forgets what it alone no longer needs.

    >>> memory = HeadMemories(2)
    >>> memory.extend(torch.ones(1, 2, 6, 4), torch.ones(1, 2, 6, 4))
    >>> memory.forget_each([Spans.of((5, None)), Spans.of((4, None))])
    >>> memory.read().positions.tolist()
    [[[5, -1], [4, 5]]]
    """

    def __init__(self, heads: int) -> None:
        self.parts = [Full() for _ in range(heads)]

    @property
    def seen(self) -> int:  # type: ignore[override]
        """Tokens that came by."""
        return self.parts[0].seen

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append n tokens to every head."""
        need_keys(k, v, keep)
        for head, part in enumerate(self.parts):
            part.extend(k[:, head : head + 1], v[:, head : head + 1], keep)

    def keys(self) -> Dense:
        """Give the keys of all heads, shorter ones filled up with empty slots."""
        reads = [part.read() for part in self.parts]
        longest = max(read.k.shape[2] for read in reads)
        k, v = (
            torch.cat([pad(x, (0, 0, 0, longest - x.shape[2])) for x in tensors], dim=1)
            for tensors in zip(*((read.k, read.v) for read in reads), strict=True)
        )
        if all(read.positions is None for read in reads):
            return Dense(k, v, None)
        rows = [
            pad(_positions(read), (0, longest - read.k.shape[2]), value=-1).expand(len(k), -1)
            for read in reads
        ]
        return Dense(k, v, torch.stack(rows, dim=1))

    def forget(self, horizon: Spans) -> None:
        """Drop what no head can need."""
        self.forget_each([horizon] * len(self.parts))

    def forget_each(self, horizons: Sequence[Spans]) -> None:
        """Drop for each head what lies outside its own horizon."""
        for part, horizon in zip(self.parts, horizons, strict=True):
            part.forget(horizon)

    def crop(self, length: int) -> None:
        """Drop the tokens after the first `length`."""
        for part in self.parts:
            part.crop(length)

    def reorder(self, rows: Tensor) -> None:
        """Take rows of the batch."""
        for part in self.parts:
            part.reorder(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all heads."""
        return sum(part.nbytes for part in self.parts)


def _positions(read: Dense) -> Tensor:
    if read.positions is not None:
        return read.positions
    return torch.arange(read.k.shape[2], device=read.k.device)[None]
