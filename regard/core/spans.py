"""Sets of key positions as spans, so that a memory can know what to forget."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.value import Value, value
from regard.core.value_text import Show


@value
class Spans(Value):
    """A union of half-open spans of positions; `None` as an end means without end.

    >>> Spans.of((0, 4)) | Spans.of((2, 9), (20, None))
    Spans(0..9, 20..)
    >>> 5 in Spans.of((0, 4)), (Spans.of((0, 8)) & Spans.of((6, None)))
    (False, Spans(6..8))
    """

    spans: tuple[tuple[int, int | None], ...]

    @staticmethod
    def of(*spans: tuple[int, int | None]) -> Spans:
        """Build a set from spans in any order, overlapping or not."""
        merged: list[tuple[int, int | None]] = []
        for start, stop in sorted(spans, key=lambda s: s[0]):
            if stop is not None and stop <= start:
                continue
            if merged and (merged[-1][1] is None or start <= merged[-1][1]):
                last = merged[-1][1]
                end = None if last is None or stop is None else max(last, stop)
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, stop))
        return Spans(tuple(merged))

    @staticmethod
    def everything() -> Spans:
        """Return all positions from 0 on."""
        return Spans(((0, None),))

    @staticmethod
    def nothing() -> Spans:
        """Return the empty set."""
        return Spans(())

    def __or__(self, other: Spans) -> Spans:
        return Spans.of(*self.spans, *other.spans)

    def __and__(self, other: Spans) -> Spans:
        common = []
        for a, b in self.spans:
            for c, d in other.spans:
                stop = b if d is None else d if b is None else min(b, d)
                common.append((max(a, c), stop))
        return Spans.of(*common)

    def __contains__(self, position: int) -> bool:
        return any(a <= position and (b is None or position < b) for a, b in self.spans)

    def holds(self, positions: Tensor) -> Tensor:
        """Return for each position whether it is in the set.

        >>> Spans.of((0, 2), (5, None)).holds(torch.arange(7)).int().tolist()
        [1, 1, 0, 0, 0, 1, 1]
        """
        found = torch.zeros_like(positions, dtype=torch.bool)
        for start, stop in self.spans:
            inside = positions >= start
            found = found | (inside if stop is None else inside & (positions < stop))
        return found

    def _text(self, show: Show) -> str:
        said = (f"{a}..{'' if b is None else b}" for a, b in self.spans)
        return f"Spans({', '.join(said)})"
