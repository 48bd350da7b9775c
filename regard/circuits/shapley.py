"""The worth of each head among all others: Shapley values by sampling, with confidence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.models.attach import attach
from regard.models.site import Site
from regard.probes.importance import taken_out
from regard.probes.looking import Progress, quiet
from regard.probes.scores import Scores

Value = Callable[[frozenset[int]], float]


@dataclass(frozen=True)
class Shapley:
    """Estimates [players], the half-width of each interval, and how often each was sampled."""

    values: Tensor
    bound: Tensor
    samples: Tensor
    full: float
    empty: float | None = None
    players: Sequence[tuple[Site, int]] = field(default=(), repr=False)

    def negative(self) -> list[int]:
        """Return players whose interval lies below 0: without them the metric does not fall."""
        return [
            i for i, (x, b) in enumerate(zip(self.values, self.bound, strict=True)) if x + b < 0
        ]

    def scores(self) -> Scores:
        """As scores of heads."""
        by_site: dict[Site, dict[int, float]] = {}
        for (site, head), value in zip(self.players, self.values.tolist(), strict=True):
            by_site.setdefault(site, {})[head] = value
        values = {
            site: torch.tensor([few.get(h, float("nan")) for h in range(site.heads or len(few))])
            for site, few in by_site.items()
        }
        return Scores(
            "shapley", "Shapley value", values, "permutations",
            "mean over random orders of v(before and h) - v(before) (Held and Yang 2023)",
            low=-torch.inf, high=None, details={"bound": self.bound, "samples": self.samples},
        )  # fmt: skip


def bernstein(variance: float, count: int, width: float, delta: float) -> float:
    """Half-width of the empirical Bernstein interval of a mean of `count` samples in a range.

    >>> bernstein(0.0, 30, 1.0, 0.05) < bernstein(0.25, 30, 1.0, 0.05)
    True
    """
    if count < 2:
        return math.inf
    log = math.log(3 / delta)
    return math.sqrt(2 * variance * log / count) + 3 * width * log / count


def sampled(
    value: Value, players: int, permutations: int = 25, *, width: float = 1.0, delta: float = 0.05,
    truncate: float | None = None, seed: int = 0, progress: Progress | None = None,
) -> Shapley:  # fmt: skip
    """Estimate Shapley values of a game v(set of players that are in), by random orders.

    Each order takes players out one by one from all of them, and each drop is a sample. `truncate`
    ends an order once v is under that share of v(all), the rest counting 0. Players whose interval
    (empirical Bernstein over samples of range `width`, at 1 - `delta`) leaves out 0 are sampled no
    more: what they would drop is not measured on its own, but together with the next.
    """
    if permutations < 1 or players < 1:
        fail(
            ValueRangeError, "players, permutations", (players, permutations), "at least 1 each",
            "sample some orders",
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    full = value(frozenset(range(players)))
    total = torch.zeros(players, dtype=torch.float64)
    square, count = total.clone(), torch.zeros(players, dtype=torch.long)
    empty, settled = None, torch.zeros(players, dtype=torch.bool)
    for done in range(permutations):
        left, now = set(range(players)), full
        order = torch.randperm(players, generator=generator).tolist()
        for place, player in enumerate(order):
            left.discard(player)
            if settled[player]:
                # Its drop is known; that of the next is measured from here.
                following = order[place + 1] if left else player
                now = now if settled[following] else value(frozenset(left))
                continue
            after = value(frozenset(left))
            drop, now = now - after, after
            total[player] += drop
            square[player] += drop * drop
            count[player] += 1
            if not left:
                empty = after
            if truncate is not None and now < truncate * full:
                count[[x for x in order[place + 1 :] if not settled[x]]] += 1
                break
        bound = _bounds(total, square, count, width, delta)
        settled = (total / count.clamp(min=1)).abs() > bound
        if progress is not None:
            progress("orders", done + 1, permutations)
        if bool(settled.all()):
            break
    bound = _bounds(total, square, count, width, delta)
    return Shapley(total / count.clamp(min=1), bound, count, full, empty)


def _bounds(total: Tensor, square: Tensor, count: Tensor, width: float, delta: float) -> Tensor:
    mean = total / count.clamp(min=1)
    variance = (square / count.clamp(min=1) - mean**2).clamp(min=0)
    pairs = zip(variance.tolist(), count.tolist(), strict=True)
    return torch.tensor([bernstein(v, c, width, delta) for v, c in pairs], dtype=torch.float64)


def exact(value: Value, players: int) -> Tensor:
    """Return Shapley values of a small game, by every subset."""
    if players > 16:
        fail(ValueRangeError, "players", players, "at most 16", "sample instead")
    values = torch.zeros(players, dtype=torch.float64)
    known: dict[frozenset[int], float] = {}
    for size in range(players + 1):
        for some in itertools.combinations(range(players), size):
            known[frozenset(some)] = value(frozenset(some))
    for inside, worth in known.items():
        for player in range(players):
            if player in inside:
                continue
            share = 1 / (players * math.comb(players - 1, len(inside)))
            values[player] += share * (known[inside | {player}] - worth)
    return values


@method(
    "shapley_head_pruning",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.models.attach import hook_of\n"
    "from regard.circuits.shapley import shapley_heads\n"
    "heads = [(hook_of(model)[1][0], h) for h in range(4)]\n"
    "worth = shapley_heads(model, lambda m: m(ids)[0, -1, 7], heads, permutations=2)",
)
def shapley_heads(
    model: Any, metric: Callable[[Any], float], heads: Sequence[tuple[Site, int]], **options: Any
) -> Shapley:
    """Return Shapley values of heads for `metric(model)`, all other heads staying as they are."""
    players = list(heads)

    def value(inside: frozenset[int]) -> float:
        out = taken_out([player for i, player in enumerate(players) if i not in inside])
        with attach(model, out, check=False), torch.no_grad():
            return float(metric(model))

    with quiet(model):
        found = sampled(value, len(players), **options)
    return replace(found, players=players)
