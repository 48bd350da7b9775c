"""Choose one candidate for each of many, at the least loss within budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail

# At most this many partial choices are followed; beyond that only the bound holds.
FOLLOWED = 1 << 11
ROUNDS = 400


class Choice(NamedTuple):
    """The chosen candidates, their loss and its lower bound: equal where the choice is optimal."""

    chosen: tuple[int, ...]
    loss: float
    bound: float


def cheapest(losses: Tensor, costs: Tensor, budgets: Sequence[float]) -> Choice:
    """Choose a candidate for each of h: least total loss with total costs within all budgets.

    `losses` [h, c] (inf rules a candidate out), `costs` [h, c, k] for k budgets. Prices p of the
    costs give a bound, sum_h min_c (loss + p cost) - p budget; partial choices are followed from
    one h to the next, less those that the bound, a budget or an equal one at less cost rules out.

    >>> losses, costs = torch.tensor([[5.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 3], [1, 2]])
    >>> cheapest(losses, costs[..., None], [3.0]).chosen, cheapest(losses, costs[..., None], [4.0])
    ((0, 1), Choice(chosen=(1, 0), loss=4.0, bound=4.0))
    """
    if losses.dim() != 2 or costs.shape != (*losses.shape, len(budgets)):
        fail(
            ShapeError, "costs", list(costs.shape), f"{[*losses.shape, len(budgets)]}",
            "pass the cost of every candidate for every budget",
        )  # fmt: skip
    loss = losses.double()
    # Scale budgets to 1; candidates that are ruled out cost infinitely much.
    most = torch.as_tensor(budgets, dtype=torch.double)
    cost = torch.where(loss.isfinite()[..., None], costs.double() / most, torch.inf)
    least = cost.amin(1).sum(0)
    if bool((least > 1 + 1e-9).any()):
        _refuse(budgets, least * most)
    loss = loss.nan_to_num(posinf=0.0)
    best = _afforded(loss, cost, torch.zeros(len(budgets), dtype=torch.double))
    prices, bound = _prices(loss, cost, _total(loss, best))
    other = _afforded(loss, cost, prices)
    best = min(best, other, key=lambda x: _total(loss, x))
    found, whole = _followed(loss, cost, prices, best)
    if bool((cost[torch.arange(len(loss)), found].sum(0) > 1 + 1e-9).any()):
        _refuse(budgets, least * most)
    total = _total(loss, found)
    return Choice(tuple(found.tolist()), total, total if whole else min(bound, total))


def _refuse(budgets: Sequence[float], least: Tensor) -> NoReturn:
    fail(
        ValueRangeError, "budgets", [round(float(x), 4) for x in budgets],
        f"at least {[round(float(x), 4) for x in least]}, the cheapest choice",
        "raise the budget, or add smaller candidates",
    )  # fmt: skip


def _total(loss: Tensor, chosen: Tensor) -> float:
    return float(loss.gather(1, chosen[:, None]).sum())


def _priced(loss: Tensor, cost: Tensor, prices: Tensor) -> Tensor:
    """Return loss plus priced costs of each candidate, [h, c]; inf where it is ruled out."""
    paid = cost.nan_to_num(posinf=0.0) @ prices
    return torch.where(cost[..., 0].isfinite(), loss + paid, torch.inf)


def _prices(loss: Tensor, cost: Tensor, best: float) -> tuple[Tensor, float]:
    """Maximize the Lagrangian bound by subgradient steps on the prices."""
    prices = torch.zeros(cost.shape[2], dtype=torch.double)
    found, bound, pace, stale = prices, -torch.inf, 1.0, 0
    for _ in range(ROUNDS):
        priced = _priced(loss, cost, prices)
        chosen = priced.argmin(1)
        value = float(priced.amin(1).sum() - prices.sum())
        stale += 1
        if value > bound:
            found, bound, stale = prices, value, 0
        if stale > 10:
            pace, stale = pace / 2, 0
        over = cost[torch.arange(len(loss)), chosen].sum(0) - 1
        size = float(over.square().sum())
        if size < 1e-18 or best - value < 1e-12:
            break
        prices = (prices + pace * (best - value) / size * over).clamp(min=0)
    return found, float(bound)


def _afforded(loss: Tensor, cost: Tensor, prices: Tensor) -> Tensor:
    """Choose by prices, raised until the budgets hold, then greedily spend what is left."""
    lines = torch.arange(len(loss))
    spread = float(loss.max() - loss.min()) + 1e-12
    chosen = cost.amax(2).argmin(1)
    for times in range(60):
        raised = prices * 1.2**times + (spread * 1e-3 * (1.6**times - 1))
        tried = _priced(loss, cost, raised).argmin(1)
        if bool((cost[lines, tried].sum(0) <= 1 + 1e-9).all()):
            chosen = tried
            break
    for _ in range(4 * len(loss)):
        left = 1 + 1e-9 - cost[lines, chosen].sum(0)
        gain = loss.gather(1, chosen[:, None]) - loss
        more = cost - cost[lines, chosen][:, None]
        gain = torch.where((more <= left).all(2) & cost[..., 0].isfinite(), gain, -torch.inf)
        place = int(gain.argmax())
        if float(gain.flatten()[place]) <= 0:
            break
        chosen[place // gain.shape[1]] = place % gain.shape[1]
    return chosen


def _followed(loss: Tensor, cost: Tensor, prices: Tensor, best: Tensor) -> tuple[Tensor, bool]:
    """Follow all partial choices that may beat `best`; also return whether none was dropped."""
    h, c = loss.shape
    k = cost.shape[2]
    lines = torch.arange(h)
    allowed = bool((cost[lines, best].sum(0) <= 1 + 1e-9).all())
    limit = _total(loss, best) if allowed else torch.inf
    priced = _priced(loss, cost, prices)
    rest = priced.amin(1).flip(0).cumsum(0).flip(0)  # the least that h, h + 1, ... add
    rest = torch.cat((rest, rest.new_zeros(1))) - prices.sum()
    need = torch.cat((cost.amin(1).flip(0).cumsum(0).flip(0), cost.new_zeros(1, k)))
    total, paid = loss.new_zeros(1), cost.new_zeros(1, k)
    way = torch.zeros(1, 0, dtype=torch.int16)
    whole = True
    for line in range(h):
        sums = (total[:, None] + loss[line]).flatten()
        costs = (paid[:, None] + cost[line]).flatten(0, 1)
        came = torch.arange(len(total)).repeat_interleave(c)
        took = torch.arange(c, dtype=torch.int16).repeat(len(total))
        low = sums + costs.nan_to_num(posinf=0.0) @ prices + rest[line + 1]
        fits = (costs + need[line + 1] <= 1 + 1e-9).all(1)
        stay = (fits & (low < limit - 1e-12)).nonzero()[:, 0]
        if not len(stay):
            return best, whole
        stay = stay[low[stay].argsort(stable=True)]
        if len(stay) > FOLLOWED:
            stay, whole = stay[:FOLLOWED], False
        stay = stay[_unbeaten(sums[stay], costs[stay])]
        total, paid = sums[stay], costs[stay]
        way = torch.cat((way[came[stay]], took[stay, None]), 1)
    return way[int(total.argmin())].long(), whole


def _unbeaten(total: Tensor, paid: Tensor) -> Tensor:
    """Return the indices of the Pareto-optimal choices; one of equal ones stays."""
    both = torch.cat((total[:, None], paid), 1)
    order = torch.arange(len(both))
    if both.shape[1] == 2:  # one budget: by cost, only ever lower losses
        order = both[:, 1].argsort(stable=True)
        order = order[both[order, 0].argsort(stable=True)]
        order = order[both[order, 1].argsort(stable=True)]
        so_far = both[order, 0].cummin(0).values
        first = torch.cat((so_far.new_full((1,), torch.inf), so_far[:-1]))
        return order[both[order, 0] < first - 1e-12]
    beats = (both[:, None] <= both[None] + 1e-12).all(2)
    twins = beats & beats.T & (order[:, None] > order[None])
    lost = (beats & ~beats.T).any(0) | (beats.T & twins).any(1)
    return order[~lost]
