"""Supports that are a band around the diagonal, perhaps with sinks: numbers to a kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.support.bands import Causal, Sinks, Window
from regard.core.support.base import Both, Either, Everything, Support

FAR = 1 << 30


class Band(NamedTuple):
    """Pairs with low <= j - i <= high, or with a key among the first `sinks`, and j - i <= high."""

    low: int = -FAR
    high: int = FAR
    sinks: int = 0

    def seen(self, n: int, m: int, offset: int, device: torch.device) -> Tensor:
        """Count the queries that may meet each key, [m]; queries stand at offset..offset + n - 1.

        >>> Band(high=0).seen(3, 3, 0, torch.device("cpu")).tolist()
        [3, 2, 1]
        """
        j = torch.arange(m, device=device) - offset
        first = (j - self.high).clamp(0, n)
        last = torch.where(j + offset < self.sinks, n - 1, j - self.low).clamp(-1, n - 1)
        return (last - first + 1).clamp(min=0)


def band_of(support: Support) -> Band | None:
    """Give the band that a support is, or None.

    >>> from regard.core.support import Causal, Sinks, Window
    >>> band_of(Causal() & (Window(8) | Sinks(4)))
    Band(low=-7, high=0, sinks=4)
    """
    if isinstance(support, Everything):
        return Band()
    if isinstance(support, Causal):
        return Band(high=0)
    if isinstance(support, Window):
        return Band(*support.reach)
    if isinstance(support, Both):
        found = Band()
        for part in support.parts:
            one = band_of(part)
            if one is None or (one.sinks and found.sinks):
                return None
            found = Band(
                max(found.low, one.low), min(found.high, one.high), found.sinks or one.sinks
            )
            if found.sinks and one.low > -FAR and not one.sinks:
                return None  # a second window would cut the sinks off as well
        return found
    if isinstance(support, Either) and len(support.parts) == 2:
        windows = [p for p in support.parts if isinstance(p, Window)]
        sinks = [p for p in support.parts if isinstance(p, Sinks)]
        if windows and sinks:
            # Only where something else bounds the future is this a band with sinks.
            return Band(windows[0].reach[0], FAR, sinks[0].count)
    return None
