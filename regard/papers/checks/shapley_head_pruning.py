"""Known games have their values; sampling six heads of a model agrees with every subset."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import nn

from regard.circuits.shapley import exact, sampled, shapley_heads
from regard.layers.attention import Attention
from regard.models.attach import attach, hook_of
from regard.models.site import Site
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.seeding import restart
from regard.papers.shared.copier_models import copier
from regard.papers.shared.measure import gap
from regard.probes.importance import taken_out

HARM = 6.0  # deviation of the planted noise, in deviations of the weights around it


def _remembered(
    model: nn.Module, accuracy: Callable[[nn.Module], float], heads: list[tuple[Site, int]]
) -> Callable[[frozenset[int]], float]:
    """Return the game of some heads: what is known of a subset is not measured again."""
    known: dict[frozenset[int], float] = {}

    def value(inside: frozenset[int]) -> float:
        if inside not in known:
            out = taken_out([head for i, head in enumerate(heads) if i not in inside])
            with attach(model, out, check=False):
                known[inside] = accuracy(model)
        return known[inside]

    return value


@check("shapley_head_pruning", beyond="multilingual encoders")
def shapley() -> Claims:
    """Known games have their values; sampling six heads of a model agrees with every subset."""
    worth = torch.tensor([0.3, -0.1, 0.05, 0.2], dtype=torch.float64)

    def additive(inside: frozenset[int]) -> float:
        return float(worth[list(inside)].sum()) if inside else 0.0

    one = sampled(additive, 4, 1)
    known = gap(one.values, worth)
    assert one.empty is not None
    efficient = abs(float(one.values.sum()) - (one.full - one.empty))
    model, _ = copier(2)
    restart()
    stretch = torch.randint(0, 40, (32, 12))
    ids = torch.cat([stretch, stretch], 1)
    heads: list[tuple[Site, int]] = [(s, h) for s in hook_of(model)[1] for h in range(3)]

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            said = model(ids)[:, 12:-1].argmax(-1)
        return float((said == ids[:, 13:]).double().mean())

    found = shapley_heads(model, accuracy, heads, permutations=40, width=1.0)
    truth = exact(_remembered(model, accuracy, heads), 6)
    within = bool(((found.values - truth).abs() <= found.bound).all())
    # A head that does harm is planted where a head did least: it writes noise from now on.
    planted = int(truth.argmin())
    site, head = heads[planted]
    # Get_submodule returns Module.
    layer: Attention = model.get_submodule(site.module)  # type: ignore[assignment]
    with torch.no_grad():
        wrong = layer.to_out.weight[:, head * layer.value_dim : (head + 1) * layer.value_dim]
        wrong.copy_(HARM * layer.to_out.weight.std() * torch.randn_like(wrong))
    game = _remembered(model, accuracy, heads)
    harmed = sampled(game, 6, 400)
    worse = harmed.negative()
    with attach(model, taken_out([heads[i] for i in worse]), check=False):
        pruned = accuracy(model)
    choices = [game(frozenset(range(6)) - set(out)) for out in combinations(range(6), len(worse))]
    by_chance = sum(choices) / len(choices)
    yield claim("For a toy additive game", "largest difference", known).within(
        1e-9, "each head's weight", because=FLOAT64
    )
    yield claim("For a toy additive game", "difference of the sum in one order", efficient).within(
        1e-9, "v(N) - v(empty)", because=FLOAT64
    )
    yield claim("on a 6-head model", "values within their Bernstein bounds", within).equals(
        True, "all 64 subsets"
    )
    yield claim(
        "on a 6-head model", "largest difference of a value", gap(found.values, truth)
    ).below(0.1, "a tenth of the accuracy", because="the bounds themselves are wide")
    yield claim(
        "pruning negative heads", "the planted head is negative", planted in harmed.negative()
    ).equals(True, "a head that writes noise does harm")
    yield claim("pruning negative heads", "accuracy without the negative heads", pruned).at_least(
        harmed.full, "with them"
    )
    yield claim(
        "pruning negative heads",
        "accuracy without as many heads by chance, mean of every choice",
        by_chance,
    ).below(pruned, "without the negative ones")
