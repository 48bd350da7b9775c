"""Supports that a kernel for bands can run: bands whose sinks end where the window does."""

from __future__ import annotations

from regard.core.band import Band
from regard.core.support.base import Support

# What kernels take for no bound: beyond any distance, within 32 bits.
FAR = 1 << 30


def band_of(support: Support) -> Band | None:
    """Return the band that a support is, with bounds of 32 bits; None where no kernel runs it.

    >>> from regard.core.support import Causal, Sinks, Window
    >>> band_of(Causal() & (Window(8) | Sinks(4)))
    Band(low=-7, high=0, sinks=4, ahead=0)
    >>> band_of(Window(8) | Sinks(4)) is None  # which a query meets far ahead, too
    True
    """
    band = support.band()
    if band is None or band.empty:
        return None
    low, high, sinks, ahead = (max(-FAR, min(x, FAR)) for x in band)
    return Band(low, high, sinks, ahead) if not sinks or ahead == high else None


def bands_of_heads(support: Support) -> list[Band] | None:
    """Return one band for all heads, or one for each."""
    found = [band_of(x) for x in support.per_head() or (support,)]
    return None if None in found else [x for x in found if x is not None]
