"""Split-softmax: keep the share of attention on a part of the prompt over a long conversation."""

from __future__ import annotations

from typing import ClassVar

from regard.controls.base import Control, checked
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, strength_of
from regard.controls.text_tokens import PromptPart, token_set
from regard.controls.token_sets import TokenSet
from regard.controls.weight_edits import ShareToPower
from regard.core.method import method
from regard.core.value import value


@register("split_softmax")
@method(
    "split_softmax",
    call='regard.steer(model, "split_softmax", strength=0.7, messages=chat, tokenizer=tokenizer)',
)
@value
class SplitSoftmax(Control):
    """Raise the share p that decoded tokens give a part of the prompt to p^strength.

    1 changes nothing; a smaller strength gives the part more. The part is the system prompt unless
    `which` names another. (Split-softmax, Li et al. 2024)

    >>> SplitSoftmax(strength=0.7).edits()[0]
    ShareToPower(PromptPart('system'), 0.7)
    """

    which: TokenSet = PromptPart("system")
    strength: Strength = 0.7
    where: SiteChoice = SiteChoice()
    phase: str = "decoded"
    neutral: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "which", token_set(self.which))
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0))
        checked(self)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Raise the share."""
        return (ShareToPower(self.which, self.strength),)
