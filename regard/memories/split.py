"""Heads in different memories: some keep all keys, some a window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail
from regard.core.heads import gather_heads
from regard.core.key_forms import Ragged
from regard.core.keys import Keys
from regard.core.spans import Spans
from regard.memories.base import KeyMemory, need_keys
from regard.memories.full import Full


class Split(KeyMemory):
    """One memory for each group of key heads.

    >>> from regard.memories.kept import Kept
    >>> from regard.memories.ring import Ring
    >>> memory = Split([((1,), Kept()), ((0, 2), Ring(window=4, sinks=1))])
    >>> for _ in range(9):
    ...     memory.extend(torch.ones(1, 3, 1, 2), torch.ones(1, 3, 1, 2)); memory.settle()
    >>> memory.counts.tolist()
    [[5, 9, 5]]
    """

    def __init__(self, parts: Sequence[tuple[Sequence[int], KeyMemory]]) -> None:
        self.parts = [(tuple(heads), memory) for heads, memory in parts if heads]
        heads = sorted(h for own, _ in self.parts for h in own)
        if not heads or heads != list(range(len(heads))):
            fail(RuleError, "parts", f"heads {heads}", "each head once", "name heads from 0 on")
        self._heads = len(heads)

    @staticmethod
    def by_head(heads: int) -> Split:
        """Build a memory for each key head, so that each drops its own keys.

        >>> memory = Split.by_head(2)
        >>> memory.extend(torch.ones(1, 2, 6, 4), torch.ones(1, 2, 6, 4))
        >>> memory.forget_each([Spans.of((5, None)), Spans.of((4, None))])
        >>> memory.read().positions.tolist()
        [[[5, -1], [4, 5]]]
        """
        return Split([((head,), Full()) for head in range(heads)])

    @property
    def seen(self) -> int:  # type: ignore[override]
        """The number of tokens seen."""
        return self.parts[0][1].seen

    @property
    def ragged(self) -> bool:
        """Whether heads keep different keys."""
        return len(self.parts) > 1

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Append the keys of every head to its memory."""
        need_keys(k, v, keep)
        for heads, memory in self.parts:
            memory.extend(gather_heads(k, heads), gather_heads(v, heads), keep)

    def groups(self) -> Iterator[tuple[tuple[int, ...], KeyMemory]]:
        """Yield the memory of each group of heads."""
        yield from self.parts

    def keys(self) -> Keys:
        """Return the keys of each group of heads."""
        if len(self.parts) == 1:
            return self.parts[0][1].keys()
        return Ragged(tuple((heads, memory.keys()) for heads, memory in self.parts))

    @property
    def counts(self) -> Tensor:
        """Keys that each head keeps, [b, g]."""
        keys = self.read()
        if keys.positions is None:
            return torch.full((keys.b, keys.g), keys.m, device=keys.device)
        return (keys.positions >= 0).sum(-1)

    def forget(self, horizon: Spans) -> None:
        """Drop keys that no later query can attend to."""
        for _, memory in self.parts:
            memory.forget(horizon)

    def forget_each(self, horizons: Sequence[Spans]) -> None:
        """Drop keys outside each head's horizon; heads of one memory share the union."""
        for heads, memory in self.parts:
            memory.forget(reduce(or_, (horizons[head] for head in heads)))

    def settle(self) -> None:
        """Compact the memories."""
        for _, memory in self.parts:
            memory.settle()

    def crop(self, length: int) -> None:
        """Crop to the first `length` tokens: all parts do, or none."""
        self.check_crop(length)
        for _, memory in self.parts:
            memory.crop(length)

    def check_crop(self, length: int) -> None:
        """Raise unless every part can be cropped."""
        for _, memory in self.parts:
            memory.check_crop(length)

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        for _, memory in self.parts:
            memory.reorder(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(memory.nbytes for _, memory in self.parts)

    @property
    def file_bytes(self) -> int:
        """Bytes of files of all parts."""
        return sum(memory.file_bytes for _, memory in self.parts)

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        return {"parts": [[list(heads), memory.state()] for heads, memory in self.parts]}

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        for (heads, memory), (own, held) in zip(self.parts, state["parts"], strict=True):
            if list(heads) != own:
                fail(
                    RuleError, "state", f"heads {own}", f"{list(heads)}", "build it as it was saved"
                )
            memory.restore(held)
