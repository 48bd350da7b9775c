"""ACT: move most of the weight of attention sinks in the middle of a text to other tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.controls.base import Control, checked
from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, strength_of
from regard.controls.token_sets import FoundInCall, expand_to_heads
from regard.controls.weight_edits import MoveMass
from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.core.value import value
from regard.run.survey import survey_call


@value
class LaterSinks(FoundInCall):
    """Keys whose mean weight, over the queries that see them, is above `times` / length.

    The first token is excluded. They are found in the prompt, for each head; decoded tokens use the
    same ones.

    >>> LaterSinks(5.0).times
    5.0
    """

    times: float = 5.0

    def __post_init__(self) -> None:
        if not self.times > 0:
            fail(ValueRangeError, "times", self.times, "a number above 0", "pass times=5.0")

    def find(self, at: EditContext) -> Tensor:
        """Survey the prompt once for the weight each key receives from the queries that see it."""
        report = survey_call(at.call, ("received",))
        mean = report.received / report.seen.clamp(min=1)
        real = report.seen > 0
        length = real.sum(-1, keepdim=True).clamp(min=1)
        place = expand_to_heads(at.key_positions, at)
        first = torch.where(real, place, torch.iinfo(torch.long).max).amin(-1, keepdim=True)
        found: Tensor = real & (mean > self.times / length) & (place > first)
        return found


@register("sink_calibration", "act")
@method(
    "act_attention_calibration",
    call='regard.steer(model, "sink_calibration", strength=0.6, where={"heads": [(2, 3)]})',
)
@value
class SinkCalibration(Control):
    """Move a share `strength` of the weight of later sinks to the other tokens, in proportion.

    A sink is a token, not the first, whose mean weight is above `times` / length. Strength 0.6
    leaves sinks the 0.4 that ACT leaves them; 0 changes nothing. The paper acts in heads that gain
    from it on a held-out set, never in the first two layers or the last: pass them in `where`.
    (ACT, Yu et al. 2024)

    >>> SinkCalibration(strength=0.5).edits()[0].point
    'weights'
    """

    strength: Strength = 0.6
    times: float = 5.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    neutral: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))
        LaterSinks(self.times)
        checked(self)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Move the mass of sinks to all other keys."""
        return (MoveMass(LaterSinks(self.times), None, self.strength),)
