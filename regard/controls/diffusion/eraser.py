"""Attentive Eraser: generate a picture as if an object were not there."""

from __future__ import annotations

import math
from typing import ClassVar, cast

from regard.controls.diffusion.diffusion_control import PICTURE, DiffusionControl, steps_first
from regard.controls.diffusion.picture_tokens import Widened
from regard.controls.edit import AttentionEdit
from regard.controls.image_tokens import Region
from regard.controls.registry import register
from regard.controls.score_edits import Forbid, ScaleScores
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerStep, Strength
from regard.controls.token_sets import KnownTokens, TokenSet
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value


@register("attentive_eraser")
@method(
    "attentive_eraser",
    call="from regard.controls import Region\n"
    "from regard.controls.diffusion import AttentiveEraser\n"
    "regard.steer(pipeline, AttentiveEraser(Region(pixels=mask)))",
)
@value
class AttentiveEraser(DiffusionControl):
    """Remove an object: no token may attend to it, and its own tokens attend less sharply.

    The model runs without and with these edits, and output + strength (edited - output) is used: 0
    changes nothing, 1 is only the edited attention, the paper uses 9. `which` is the region of the
    object, grown by `cells` tokens; in the first `soft_steps` the scores of its tokens are
    multiplied by `softness`, so that a similar object does not appear again. Start from the noised
    picture, and keep what is outside of the mask. (Attentive Eraser, Sun et al. 2024)

    >>> AttentiveEraser(Region(box=(0, 0, 0.5, 0.5))).guidance
    9.0
    """

    which: TokenSet
    strength: Strength = 9.0
    cells: int = 1
    softness: float = 0.3
    soft_steps: int = 9
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    kinds: ClassVar[tuple[str, ...]] = PICTURE
    high: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.which, TokenSet) or self.which.modality != "image":
            fail(
                RuleError, "which", shape_of(self.which), "a region of the picture",
                "pass Region(pixels=mask) or Region(box=(top, left, bottom, right))",
            )  # fmt: skip
        steps_first(self.soft_steps, "soft_steps")
        if not isinstance(self.softness, int | float) or not 0 <= self.softness <= 1:
            fail(ValueRangeError, "softness", shape_of(self.softness), "0 to 1", "pass 0.3")

    @property
    def guidance(self) -> Strength:
        """Return the strength: guidance toward the picture without the object."""
        return self.strength

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Forbid the object, and soften the attention of its tokens."""
        which = cast("KnownTokens", self.which)  # otherwise `Widened` reports what is missing
        region = Widened(which, self.cells) if self.cells else self.which
        soft = PerStep((self.softness,) * self.soft_steps + (1.0,))
        return (ScaleScores(soft, region), Forbid(region))


__all__ = ["AttentiveEraser", "Region"]
