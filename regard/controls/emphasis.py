"""Emphasis: raise chosen tokens of a prompt against the rest, in chosen heads (PASTA)."""

from __future__ import annotations

import math
from typing import ClassVar

from regard.controls.base import Control, checked
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.score_edits import AddBias
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, strength_of
from regard.controls.text_tokens import token_set
from regard.controls.token_sets import TokenSet
from regard.core.value import value


@register("emphasis")
@value
class Emphasis(Control):
    """Multiply the odds of chosen tokens by e^strength, in chosen heads; 0 changes nothing.

    PASTA divides the weights of all other tokens by 100 and renormalizes rows: the same as
    `strength=math.log(100)`, for every query, in heads that were profiled for the task.

    >>> Emphasis("Paris", 2.0).edits()[0]
    AddBias(Phrase('Paris'), 2.0)
    """

    which: TokenSet
    strength: Strength = math.log(100)
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    neutral: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "which", token_set(self.which))
        object.__setattr__(self, "strength", strength_of(self.strength))
        checked(self)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Raise the scores of the tokens."""
        return (AddBias(self.which, self.strength),)
