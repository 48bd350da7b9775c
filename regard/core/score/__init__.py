"""How much a pair matches: matches, and the steps that change their scores."""

from regard.core.score.base import At, Match, Score, ScoreMod
from regard.core.score.biases import (
    Alibi,
    DistanceBias,
    GroupBias,
    LatticeBias,
    RelativeBias,
    ScoreStep,
    SoftCap,
    StepOfHeads,
    T5Bias,
)
from regard.core.score.contents import (
    Cope,
    KeyWeights,
    LowRankBias,
    QueryBias,
    ShawBias,
    Temperature,
)
from regard.core.score.landmarks import Landmarks
from regard.core.score.matches import Additive, Dot, Gaussian, General, folded

__all__ = [
    "Additive",
    "Alibi",
    "At",
    "Cope",
    "DistanceBias",
    "Dot",
    "Gaussian",
    "General",
    "GroupBias",
    "KeyWeights",
    "Landmarks",
    "LatticeBias",
    "LowRankBias",
    "Match",
    "QueryBias",
    "RelativeBias",
    "Score",
    "ScoreMod",
    "ScoreStep",
    "ShawBias",
    "SoftCap",
    "StepOfHeads",
    "T5Bias",
    "Temperature",
    "folded",
]
