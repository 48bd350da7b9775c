"""Entropy scale: keep attention as sharp at another image size as at the trained one."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion.diffusion_control import PICTURE, DiffusionControl
from regard.controls.diffusion.picture_tokens import PictureTokens
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.score_edits import ScaleScores
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerRow, PerStep, Strength, is_neutral
from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value


@register("entropy_scale")
@method(
    "entropy_scale_variable_size",
    call="from regard.controls.diffusion import EntropyScale\n"
    "regard.steer(pipeline, EntropyScale(trained=1024))",
)
@value
class EntropyScale(DiffusionControl):
    """Generate at a size that the model was not trained for: keep the entropy of its attention.

    Scores of the picture's attention are multiplied by (log N / log T)^(strength / 2), with N
    tokens now and T in training: `trained` tokens at the finest site, in proportion at the others.
    Strength 1 is the paper, 2 the square of it (Video-Infinity); 0, or the trained size, changes
    nothing. (Jin et al. 2023)

    >>> round(EntropyScale(trained=256).factor(1024, 1024), 4)
    1.118
    """

    trained: int
    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    kinds: ClassVar[tuple[str, ...]] = PICTURE
    high: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.trained, bool) or not isinstance(self.trained, int) or self.trained < 4:
            fail(
                ValueRangeError, "trained", shape_of(self.trained), "tokens of a picture in "
                "training, at least 4", "pass (rows * columns), e.g. 64 * 64",
            )  # fmt: skip

    def factor(self, tokens: int, finest: int) -> float:
        """Return the factor of scores at a site, where the finest site has `finest` tokens.

        This is the factor at strength 1.
        """
        then = max(self.trained * tokens / finest, 2.0)
        return math.sqrt(math.log(max(tokens, 2)) / math.log(then))

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Scale scores by the number of tokens."""
        return (_EntropyScores(self.trained, self.strength),)


@value
class _EntropyScores(AttentionEdit):
    """Multiply scores by (log N / log T)^(strength / 2)."""

    trained: int
    strength: Strength
    point: ClassVar[str] = "scores"
    law: ClassVar[str] = "at the size of training nothing changes"

    def changes(self, at: EditContext) -> Tensor:
        """Return the tokens of the picture."""
        return at.limit & PictureTokens().mask(at, "queries")

    def before(self, at: EditContext) -> Call:
        """Scale the scores."""
        own = at.tokens_at("queries", "image")
        tokens = own.stop - own.start
        finest = at.forward.images or tokens
        factor = EntropyScale(self.trained).factor(tokens, max(finest, tokens))
        if factor == 1.0 or is_neutral(self.strength, 0.0):
            return at.call
        number = self.strength
        if isinstance(number, PerRow | PerStep):
            raised: Strength = type(number)(tuple(factor**x for x in number.numbers))
        else:
            raised = factor**number
        return ScaleScores(raised, PictureTokens()).before(at)
