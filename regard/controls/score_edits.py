"""Edits of scores: add a bias, scale, or forbid chosen keys."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit, add_bias, forbid
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.text_tokens import read_sets
from regard.controls.token_sets import TokenSet
from regard.core.call import Call
from regard.core.score import Temperature
from regard.core.score.base import At, as_float
from regard.core.score.biases import PlaceStep
from regard.core.support.chosen import pick
from regard.core.value import value


def queries_of(at: EditContext, queries: TokenSet | None) -> Tensor:
    """Return which queries an edit changes, bool [b or 1, h or 1, n or 1]."""
    return at.limit if queries is None else at.limit & queries.mask(at, "queries")


@value
class AddBias(AttentionEdit):
    """Add `strength` to the scores of some keys, for all queries or for some; 0 changes nothing.

    The odds of these keys against the others are multiplied by e^strength.

    >>> AddBias("Paris", 2.0)
    AddBias(Phrase('Paris'), 2.0)
    """

    keys: TokenSet
    strength: Strength = 1.0
    queries: TokenSet | None = None
    point: ClassVar[str] = "scores"
    law: ClassVar[str] = "odds of the keys are multiplied by e^strength; all other ratios are kept"

    def __post_init__(self) -> None:
        read_sets(self, "keys")
        object.__setattr__(self, "strength", strength_of(self.strength))

    def before(self, at: EditContext) -> Call:
        """Add the bias."""
        if is_neutral(self.strength, 0.0):
            return at.call
        chosen = queries_of(at, self.queries)
        return add_bias(at.call, [(at.tensor(self.strength) * chosen, self.keys.mask(at))])


@value
class Forbid(AttentionEdit):
    """Forbid some keys for all or some queries: their weight is exactly 0.

    A query that may attend to nothing else is left unchanged.

    >>> Forbid("Paris").point
    'scores'
    """

    keys: TokenSet
    queries: TokenSet | None = None
    point: ClassVar[str] = "scores"
    law: ClassVar[str] = "the keys get weight 0; ratios of the others are kept; rows sum to one"

    def __post_init__(self) -> None:
        read_sets(self, "keys")

    def before(self, at: EditContext) -> Call:
        """Lower the scores until the weights are 0."""
        return forbid(at.call, queries_of(at, self.queries), self.keys.mask(at))


@value
class ScaleScores(AttentionEdit):
    """Multiply all scores of some queries by `strength`: above 1 sharpens; 1 changes nothing.

    >>> ScaleScores(0.5).strength
    0.5
    """

    strength: Strength = 1.0
    queries: TokenSet | None = None
    point: ClassVar[str] = "scores"
    law: ClassVar[str] = "log odds of two keys are multiplied by strength; 0 gives equal weights"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0))
        read_sets(self)

    def before(self, at: EditContext) -> Call:
        """Add a factor for each query."""
        if is_neutral(self.strength, 1.0):
            return at.call
        chosen = queries_of(at, self.queries)
        factor = torch.where(chosen, at.tensor(self.strength), 1.0)
        step = Temperature(factor.expand(*factor.shape[:2], at.call.n))
        rule = at.call.rule
        return at.call.replace(rule=rule.replace(score=rule.score >> step))


@value
class RaiseScores(AttentionEdit):
    """Add `strength` times their absolute value to the scores of some keys, s + strength |s|.

    >>> RaiseScores("Paris", 0.7).strength
    0.7
    """

    keys: TokenSet
    strength: Strength = 0.5
    queries: TokenSet | None = None
    point: ClassVar[str] = "scores"
    law: ClassVar[str] = "s becomes s + strength |s| for the keys; mass on them never falls"

    def __post_init__(self) -> None:
        read_sets(self, "keys")
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0))

    def before(self, at: EditContext) -> Call:
        """Add a score step that depends on the size of a score."""
        if is_neutral(self.strength, 0.0):
            return at.call
        gain = at.tensor(self.strength) * queries_of(at, self.queries)
        rule = at.call.rule
        step = RaisedScores(gain.expand(*gain.shape[:2], at.call.n), self.keys.mask(at))
        return at.call.replace(rule=rule.replace(score=rule.score >> step))


@value
class RaisedScores(PlaceStep):
    """s + gain |s| for chosen keys: `gain` [b or 1, h or 1, n], `chosen` [b or 1, h or 1, m].

    >>> print(RaisedScores(torch.ones(1, 1, 2), torch.tensor([[[True, False]]])))
    RaisedScores(<float32 1x1x2>, <bool 1x1x2>)
    """

    gain: Tensor
    chosen: Tensor
    adds: ClassVar = False
    asks_positions: ClassVar = False
    by_token: ClassVar = True
    row_part: ClassVar = "gain"
    _head_axis: ClassVar = {"gain": 1, "chosen": 1}

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Raise the scores of chosen keys."""
        gain = as_float(pick(self.gain, at.b, at.h, at.row), scores)
        chosen = as_float(pick(self.chosen, at.b, at.h, at.col), scores)
        # A removed pair has a score of -inf, and stays removed.
        size = torch.where(scores == -math.inf, 0.0, scores.abs())
        return scores + gain * chosen * size
