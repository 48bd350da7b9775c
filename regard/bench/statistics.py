"""Statistics of scores: intervals, rankings, CAB's index, break-even lengths."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regard.core.method import method

# The 97.5% quantile of Student's t by degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
      2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], errors: Sequence[float] = ()) -> MeanInterval:
    """Estimate a mean with its interval, from several seeds or from the error of a single one.

    >>> estimate([0.5, 0.7])
    MeanInterval(mean=0.6, low=-0.6706, high=1.8706)
    >>> estimate([0.5], [0.1])
    MeanInterval(mean=0.5, low=0.304, high=0.696)
    """
    mean = statistics.mean(values)
    k = len(values)
    if k > 1:
        half = _T[min(k - 1, len(_T)) - 1] * statistics.stdev(values) / math.sqrt(k)
    else:
        half = 1.96 * (errors[0] if errors else 0.0)
    return MeanInterval(round(mean, 6), round(mean - half, 6), round(mean + half, 6))


@dataclass(frozen=True)
class Count:
    """How many were right, of how many, with the 95% interval of the share.

    >>> print(Count(2, 6))
    2 of 6 (10% to 70%)
    >>> Count(0, 12).share, Count(0, 12).interval
    (0.0, (0.0, 0.2425))
    """

    right: int
    total: int

    @property
    def share(self) -> float:
        """The share that was right."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share, by Wilson's score, which holds for few and for 0 too."""
        n, p, z = self.total, self.share, 1.959964
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = max(middle - half, 0.0), min(middle + half, 1.0)
        return round(low, 4), round(high, 4)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.right} of {self.total} ({100 * low:.0f}% to {100 * high:.0f}%)"


def above_chance(score: float, chance: float) -> float:
    """Put a score on a scale where 0 is chance and 1 is perfect.

    >>> above_chance(0.55, 0.1)
    0.5
    """
    return round((score - chance) / (1 - chance), 9)


# scores[layer][task] = scores above chance by seed; errors likewise, from test rows alone
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def ranking(scores: Scores, errors: Scores, draws: int = 2000) -> list[tuple[str, MeanInterval]]:
    """Rank layers by their mean over tasks, best first, with intervals by the bootstrap.

    Each draw resamples seeds within each task; a single seed is resampled by the error of its test
    rows. Only tasks that every layer has done are counted.

    >>> ranking({"a": {"t": [1.0]}, "b": {"t": [0.0]}}, {"a": {"t": [0.0]}, "b": {"t": [0.0]}})[0]
    ('a', MeanInterval(mean=1.0, low=1.0, high=1.0))
    """
    shared = common(scores)
    rng, found = random.Random(0), []
    for layer, by_task in scores.items():
        if not shared:
            continue
        mean = statistics.mean(statistics.mean(by_task[t]) for t in shared)
        drawn = []
        for _ in range(draws):
            of = []
            for t in shared:
                values = by_task[t]
                if len(values) > 1:
                    of.append(statistics.mean(rng.choices(values, k=len(values))))
                else:
                    of.append(rng.gauss(values[0], errors[layer][t][0]))
            drawn.append(statistics.mean(of))
        drawn.sort()
        low, high = drawn[int(0.025 * draws)], drawn[int(0.975 * draws) - 1]
        found.append((layer, MeanInterval(mean, low, high)))
    return sorted(found, key=lambda x: -x[1].mean)


def common(scores: Scores) -> list[str]:
    """Return tasks that every layer has done, in the order of the first layer."""
    first = next(iter(scores.values()), {})
    return [t for t in first if all(t in by_task for by_task in scores.values())]


@method("cab", call="from regard.bench.statistics import compositional_index")
def compositional_index(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """CAB's index of each method: the mean over tasks of the mean z-score of a task's metrics.

    `scores[task][method]` are the metrics of a method on a task, higher being better. A metric is
    standardized over the methods, so that adding a constant, or another unit, changes nothing; a
    metric on which all are equal says nothing of any.

    >>> compositional_index({"copy": {"a": [1.0], "b": [3.0]}})
    {'a': -1.0, 'b': 1.0}
    """
    found: dict[str, list[float]] = {}
    for by_method in scores.values():
        metrics = list(zip(*by_method.values(), strict=True))
        for name, values in by_method.items():
            z = []
            for value, over in zip(values, metrics, strict=True):
                scale = statistics.pstdev(over)
                z.append((value - statistics.mean(over)) / scale if scale > 1e-12 else 0.0)
            found.setdefault(name, []).append(statistics.mean(z))
    return {name: round(statistics.mean(z), 9) for name, z in found.items()}


def efficiency_length(
    lengths: Sequence[float], costs: Sequence[float], plain: Sequence[float]
) -> float | None:
    """CAB's efficiency length: where a fitted cost falls below that of plain attention.

    Both are fitted as parabolas, a n² + b n + c with nothing below zero. From the length that is
    given on it stays below, however long the text: 0.0 where it is below at every length, None
    where it is above in the end.

    >>> efficiency_length([1, 2, 4, 8], [10, 20, 40, 80], [1, 4, 16, 64])
    10.0
    """
    a, b = _parabola(lengths, costs), _parabola(lengths, plain)
    two, one, zero = (x - y for x, y in zip(a, b, strict=True))
    last = next((x for x in (two, one, zero) if abs(x) > 1e-18), 0.0)
    if last >= 0:  # the fastest-growing term decides for long texts
        return None
    if abs(two) < 1e-18:
        roots = [-zero / one] if abs(one) > 1e-18 else []
    else:
        under = one * one - 4 * two * zero
        roots = [(-one + s * math.sqrt(under)) / (2 * two) for s in (-1, 1)] if under >= 0 else []
    return round(max([0.0, *roots]), 6)


def _parabola(lengths: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """Fit a n² + b n + c by least squares of relative errors, with no part below zero."""
    import itertools

    import numpy as np

    n, y = np.array(lengths, float), np.array(costs, float)
    parts = np.stack((n**2, n, np.ones_like(n)), 1) / y[:, None]
    best: tuple[float, tuple[float, float, float]] | None = None
    for kept in itertools.chain.from_iterable(
        itertools.combinations(range(3), k) for k in (1, 2, 3)
    ):
        found = np.linalg.lstsq(parts[:, kept], np.ones_like(y), rcond=None)[0]
        if (found < 0).any():
            continue
        miss = float(((parts[:, kept] @ found - 1) ** 2).sum())
        if best is None or miss < best[0] - 1e-12:
            whole = [0.0, 0.0, 0.0]
            for i, x in zip(kept, found, strict=True):
                whole[i] = float(x)
            best = miss, (whole[0], whole[1], whole[2])
    assert best is not None
    return best[1]
