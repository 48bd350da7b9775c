"""Charts as inline SVG: lines with bands, points with intervals, axes with round numbers.

Colors are classes, so that one style sheet serves light and dark; nothing is fetched or run.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Axis:
    """An axis from low to high with a title; logarithmic, of fractions, or of integers."""

    low: float
    high: float
    title: str = ""
    log: bool = False
    share: bool = False
    whole: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], title: str = "", *, log: bool = False, whole: bool = False
    ) -> Axis:
        """Build an axis that holds all values.

        >>> Axis.around([3.0, 9.0]).low
        3.0
        """
        known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        low, high = (min(known), max(known)) if known else (1.0, 2.0)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        return cls(low, high, title, log, whole=whole)

    def at(self, value: float) -> float:
        """Return the relative position of a value: 0 at low, 1 at high."""
        if self.log:
            value = max(value, 1e-300)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return round numbers within the axis.

        >>> Axis(0, 1).ticks()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> Axis(2.1e8, 4.9e8, log=True).ticks() == [2.5e8, 3e8, 4e8]
        True
        """
        if self.log:
            begin, end = (
                math.ceil(math.log10(self.low) - 1e-9),
                math.floor(math.log10(self.high) + 1e-9),
            )
            if end - begin >= 2 and not self.whole:
                step = max(1, (end - begin) // 4)
                return [10.0**k for k in range(begin, end + 1, step)]
            tens = [10.0**k for k in range(-12, 20)]
            coarse = [m * ten for ten in tens for m in (1, 2, 5)]
            fine = [m * ten for ten in tens for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)]
            held: list[float] = []
            for steps in ([2.0**k for k in range(60)],) if self.whole else (coarse, fine):
                held = [x for x in steps if self.low * 0.999 <= x <= self.high * 1.001]
                if len(held) > 1:
                    break
            # If all values are nearly equal, both ends.
            held = held if len(held) > 1 or self.whole else [self.low, self.high]
            return held[:: max(1, -(-len(held) // 6))]
        span = self.high - self.low
        raw = span / 4
        base = 10 ** math.floor(math.log10(raw))
        step = min((m * base for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 10) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def label(self, value: float) -> str:
        """Format a tick."""
        if self.whole:
            return f"{value:,.0f}"
        return f"{100 * value:.0f}%" if self.share else short(value)


def short(value: float) -> str:
    """Format a number in few characters.

    >>> short(1500), short(0.25), short(2.5e9), short(3e-5)
    ('1.5k', '0.25', '2.5G', '30µ')
    """
    size = abs(value)
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= scale:
            return f"{value / scale:.3g}{letter}"
    if size >= 0.01 or size == 0:
        return f"{value:.3g}"
    return f"{value * 1e3:.3g}m" if size >= 1e-3 else f"{value * 1e6:.3g}µ"


@dataclass
class Chart:
    """A drawing area between two axes, filled by `line`, `band`, `point` and `across`."""

    x: Axis
    y: Axis
    width: int = 320
    height: int = 200
    title: str = ""
    left: int = 46
    bottom: int = 36
    _drawn: list[str] = field(default_factory=list)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        across, up = self.width - self.left - 22, self.height - self.bottom - 10
        ix = min(max(self.x.at(x), -0.02), 1.02)
        iy = min(max(self.y.at(y), -0.05), 1.05)
        return round(self.left + ix * across, 1), round(10 + (1 - iy) * up, 1)

    def line(self, points: Sequence[tuple[float, float]], color: int, label: str = "") -> None:
        """Draw a line through points, with its label as a tip."""
        at = " ".join(f"{a},{b}" for a, b in (self._at(x, y) for x, y in points))
        self._drawn.append(f'<polyline class="l c{color}" points="{at}">{_tip(label)}</polyline>')

    def steps(self, points: Sequence[tuple[float, float]], label: str = "") -> None:
        """Draw a grey staircase through points: each holds until the next."""
        at = [self._at(x, y) for x, y in points]
        path = at[:1] + [p for a, b in pairwise(at) for p in ((b[0], a[1]), b)]
        said = " ".join(f"{a},{b}" for a, b in path)
        self._drawn.append(f'<polyline class="f" points="{said}">{_tip(label)}</polyline>')

    def band(self, points: Sequence[tuple[float, float, float]], color: int) -> None:
        """Fill between low and high at each x."""
        upper = [self._at(x, high) for x, _, high in points]
        lower = [self._at(x, low) for x, low, _ in reversed(points)]
        at = " ".join(f"{a},{b}" for a, b in [*upper, *lower])
        self._drawn.append(f'<polygon class="b c{color}" points="{at}"/>')

    def point(self, x: float, y: float, color: int, label: str = "") -> None:
        """Draw a point."""
        a, b = self._at(x, y)
        self._drawn.append(
            f'<circle class="p c{color}" cx="{a}" cy="{b}" r="4">{_tip(label)}</circle>'
        )

    def interval(self, x: float, low: float, high: float, color: int) -> None:
        """Draw an upright interval at x."""
        (a, top), (_, foot) = self._at(x, high), self._at(x, low)
        self._drawn.append(f'<line class="l c{color}" x1="{a}" x2="{a}" y1="{top}" y2="{foot}"/>')

    def across(self, y: float, label: str) -> None:
        """Draw a dashed line at y, such as chance."""
        (a, b), (c, _) = self._at(self.x.low, y), self._at(self.x.high, y)
        self._drawn.append(
            f'<line class="d" x1="{a}" x2="{c}" y1="{b}" y2="{b}">{_tip(label)}</line>'
        )

    def svg(self) -> str:
        """Return the chart as SVG."""
        marks = []
        for tick in self.y.ticks():
            (a, b), (c, _) = self._at(self.x.low, tick), self._at(self.x.high, tick)
            marks.append(
                f'<line class="g" x1="{a}" x2="{c}" y1="{b}" y2="{b}"/>'
                f'<text class="e" x="{a - 5}" y="{b + 4}">{self.y.label(tick)}</text>'
            )
        for tick in self.x.ticks():
            a, b = self._at(tick, self.y.low)
            marks.append(f'<text class="m" x="{a}" y="{b + 15}">{self.x.label(tick)}</text>')
        middle = (self.left + self.width - 22) / 2
        marks.append(
            f'<text class="m q" x="{middle}" y="{self.height - 4}">{_plain(self.x.title)}</text>'
        )
        said = _plain(f"{self.title}. {self.y.title} against {self.x.title}")
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{said}">'
            f"{''.join(marks + self._drawn)}</svg>"
        )


def ranked(rows: Sequence[tuple[str, float, float, float, int]], width: int = 620) -> str:
    """Draw means with intervals, one per row: label, mean, low, high, color; from 0 to 1.

    >>> ranked([("mha", 0.9, 0.8, 1.0, 0)]).count("<circle")
    1
    """
    low = min([0.0, *(r[2] for r in rows)])
    axis = Axis(max(low, -0.5), max(1.0, *(r[3] for r in rows)), share=True)
    left = 20 + 8 * max((len(r[0]) for r in rows), default=4)
    height, across = 28 * len(rows) + 30, width - left - 60

    def at(value: float) -> float:
        return round(left + min(max(axis.at(value), 0), 1) * across, 1)

    drawn = []
    for tick in axis.ticks():
        a = at(tick)
        drawn.append(
            f'<line class="g" x1="{a}" x2="{a}" y1="4" y2="{height - 24}"/>'
            f'<text class="m" x="{a}" y="{height - 8}">{axis.label(tick)}</text>'
        )
    for i, (label, mean, under, over, color) in enumerate(rows):
        b = 28 * i + 18
        tip = _tip(f"{label}: {100 * mean:.1f}% (95%: {100 * under:.1f} to {100 * over:.1f})")
        drawn.append(
            f'<text class="e n" x="{left - 10}" y="{b + 4}">{_plain(label)}</text>'
            f'<line class="l c{color}" x1="{at(under)}" x2="{at(over)}" y1="{b}" y2="{b}"/>'
            f'<circle class="p c{color}" cx="{at(mean)}" cy="{b}" r="5">{tip}</circle>'
            f'<text class="v" x="{width - 50}" y="{b + 4}">{100 * mean:.1f}%</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="Ranking">{"".join(drawn)}</svg>'
    )


def _tip(label: str) -> str:
    return f"<title>{_plain(label)}</title>" if label else ""


def _plain(text: str) -> str:
    return html.escape(text, quote=True)
