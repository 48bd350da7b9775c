"""One example, at least, of every part of a rule that the library has: laws run over all of them.

All serve a batch of 2, 4 query heads over 2 key heads, and 12 queries and keys of size 8. A part
without an example fails `test_every_part_has_an_example`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from regard.core.rule import Rule
from regard.core.score import (
    Additive,
    Alibi,
    Cope,
    DistanceBias,
    Dot,
    Gaussian,
    General,
    GroupBias,
    KeyWeights,
    Landmarks,
    LatticeBias,
    LowRankBias,
    QueryBias,
    RelativeBias,
    Score,
    ScoreMod,
    ScoreStep,
    ShawBias,
    SoftCap,
    StepOfHeads,
    T5Bias,
    Temperature,
)
from regard.core.score.dense import DenseBias
from regard.core.support import (
    Attribute,
    Blocks,
    Causal,
    ChosenKeys,
    Dilated,
    Documents,
    Everything,
    Extended,
    Kinds,
    Neighborhood,
    OfHeads,
    Padding,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sinks,
    Strided,
    Support,
    Tiles,
    Where,
    Window,
)
from regard.core.support.dense import DenseMask
from regard.core.value import Value, types
from regard.core.weigh import Laplace, Relu, Sigmoid, Signed, Softmax, Weigh

B, H, G, N, D = 2, 4, 2, 12, 8
# Values that are no part of a rule.
OTHERS = {
    "Spans",
    "TileMap",
    "Rule",
    "Score",
    "Rotation",
    "SlowedBase",
    "SlowedByWavelength",
    "Yarn",
}


def by_head(b, h, i, j):
    return (i * 3 + j * 5 + h) % 4 != 0


def louder_by_head(s, b, h, i, j):
    return s * (1 + h) / 4


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _chosen(*shape: int) -> torch.Tensor:
    return _random(*shape) > -0.4


def _groups() -> torch.Tensor:
    return torch.arange(N) // 4 % 3


SUPPORTS: dict[str, Callable[[], Support]] = {
    "Everything": Everything,
    "Causal": Causal,
    "Window": lambda: Window(5, 2),
    "Sinks": lambda: Sinks(2),
    "Dilated": lambda: Dilated(3),
    "Strided": lambda: Strided(3, 1, 2),
    "Blocks": lambda: Blocks(4, 1),
    "Neighborhood": lambda: Neighborhood((3, 3), (3, 4)),
    "Attribute": lambda: Attribute(_groups(), _groups().flip(0), "not after"),
    "Documents": lambda: Documents(torch.stack([_groups(), torch.zeros(N, dtype=torch.long)])),
    "Kinds": lambda: Kinds(_groups(), torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).bool()),
    "Padding": lambda: Padding(_chosen(B, N)),
    "PrefixLM": lambda: PrefixLM(torch.tensor([3, 5])),
    "SharedPrefix": lambda: SharedPrefix(2, (4, 6)),
    "Tiles": lambda: Tiles(_chosen(1, H, 3, 3), 4),
    "ChosenKeys": lambda: ChosenKeys(torch.arange(H * 3).view(1, H, 1, 3) % N),
    "PerHead": lambda: PerHead([Causal(), Causal(), Causal() & Window(3), Sinks(2)]),
    "Extended": lambda: Extended(Causal(), N - 2),
    "Where": lambda: Where(by_head),
    "OfHeads": lambda: OfHeads(Where(by_head), (3, 1, 0, 2)),
    "DenseMask": lambda: DenseMask(_chosen(1, H, N, N)),
    "Both": lambda: Causal() & Padding(_chosen(B, N)),
    "Either": lambda: Window(2) | Tiles(_chosen(1, H, 3, 3), 4),
    "Other": lambda: ~Window(3),
    "Shifted": lambda: Causal().shift(2) | Window(2),
}

STEPS: dict[str, Callable[[], ScoreMod]] = {
    "SoftCap": lambda: SoftCap(2.5),
    "Alibi": lambda: Alibi.for_heads(H),
    "DistanceBias": lambda: DistanceBias(_random(H).abs() + 2),
    "RelativeBias": lambda: RelativeBias(_random(H, 7)),
    "LatticeBias": lambda: LatticeBias(_random(H, 3, 3), (3, 4)),
    "T5Bias": lambda: T5Bias(_random(H, 8), False, 20),
    "GroupBias": lambda: GroupBias(_groups(), _random(H, 3, 3)),
    "ScoreStep": lambda: ScoreStep(louder_by_head),
    "StepOfHeads": lambda: StepOfHeads(ScoreStep(louder_by_head), (3, 1, 0, 2)),
    "LowRankBias": lambda: LowRankBias(_random(1, H, N, 2), _random(B, 1, N, 2)),
    "KeyWeights": lambda: KeyWeights(_random(1, H, N)),
    "Temperature": lambda: Temperature(query=_random(1, H, N).abs() + 0.2),
    "QueryBias": lambda: QueryBias(_random(1, H, N, 5)),
    "ShawBias": lambda: ShawBias(_random(H, 7, D)),
    "Cope": lambda: Cope(_random(H, 6, D)),
    "Landmarks": lambda: Landmarks(4),
    "DenseBias": lambda: DenseBias(_random(1, H, N, N)),
}

SCORES: dict[str, Callable[[], Score]] = {
    "DotMatch": lambda: Dot(0.3),
    "GeneralMatch": lambda: General(_random(H, D, D)),
    "AdditiveMatch": lambda: Additive(_random(H, D, 3), _random(H, D, 3), _random(H, 3)),
    "GaussianMatch": lambda: Gaussian(2.0),
}

WEIGHS: dict[str, Callable[[], Weigh]] = {
    "Softmax": lambda: Softmax(sink=_random(H)),
    "Signed": Signed,
    "Sigmoid": lambda: Sigmoid(-1.0),
    "Relu": lambda: Relu(2, 0.25),
    "Laplace": Laplace,
}

PARTS: dict[str, Callable[[], Value]] = {
    **SUPPORTS,
    **STEPS,
    **{name: (lambda make=make: make().match) for name, make in SCORES.items()},
    **WEIGHS,
}


def rule_of(name: str) -> Rule:
    """Return a rule around the example of a part."""
    if name in SUPPORTS:
        return Rule(SUPPORTS[name]())
    if name in STEPS:
        return Rule(Causal(), Dot() >> STEPS[name]())
    if name in SCORES:
        return Rule(Causal(), SCORES[name]())
    return Rule(Causal() & Window(5), weigh=WEIGHS[name]())


def library_parts() -> set[str]:
    """Name every part of a rule that the library defines."""
    found = {n for n, kind in types().items() if kind.__module__.startswith("regard.core.")}
    return found - OTHERS
