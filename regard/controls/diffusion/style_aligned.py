"""StyleAligned: one style for all pictures of a batch, by shared keys with matched statistics."""

from __future__ import annotations

from typing import ClassVar

import torch

from regard.controls.context import EditContext
from regard.controls.diffusion.picture_tokens import PictureEdit
from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.diffusion.references import ReadingControl
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, strength_of
from regard.core.call import Call
from regard.core.errors import RuleError, fail
from regard.core.method import method
from regard.core.value import value


@value
class MatchStatistics(PictureEdit):
    """Give queries and keys of all pictures the mean and deviation of those of picture `row`.

    By head and channel, over the tokens of a picture; 0 changes nothing. (AdaIN)

    >>> MatchStatistics().row
    0
    """

    row: int = 0
    strength: Strength = 1.0
    point: ClassVar[str] = "queries"
    law: ClassVar[str] = "at strength 1, mean and deviation of each channel are the reference's"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))

    def before(self, at: EditContext) -> Call:
        """Match queries and keys."""
        call = at.call
        if not bool((at.tensor(self.strength) != 0).any()):
            return call
        number = at.factor(self.strength)
        own, size = at.tokens_at("queries", "image"), call.b // at.branches
        if not 0 <= self.row < size:
            fail(RuleError, "row", self.row, f"pictures 0 to {size - 1}", "count from 0")
        found = {}
        for name in ("q", "k"):
            x = getattr(call, name)
            part = x[:, :, own].float()
            mean, size_of = part.mean(2, keepdim=True), part.std(2, keepdim=True).clamp(min=1e-6)
            first = torch.arange(call.b, device=at.device) // size * size + self.row
            matched = (part - mean) / size_of * size_of[first] + mean[first]
            new = x.clone()
            new[:, :, own] = (part + number * (matched - part)).to(x)
            found[name] = torch.where(at.limit[..., None], new, x) if name == "q" else new
        return call.replace(**found)


@register("style_aligned", "style_nerf2nerf")
@method("style_nerf2nerf", call='regard.steer(pipeline, "style_aligned")')
@value
class StyleAligned(ReadingControl):
    """Give all pictures of a batch the style of picture `reference`.

    Each reads its keys, with the mean and deviation of its own queries and keys matched to the
    reference's. 0 changes nothing. This gives views of a scene one style (Style-NeRF2NeRF, Fujiwara
    et al. 2024, in the form of StyleAligned); a scene is then fitted to them by
    `sliced_wasserstein`.

    >>> StyleAligned().edits()[0]
    MatchStatistics()
    """

    reference: int = 0
    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    high: ClassVar[float] = 1.0

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Match statistics, and read the reference."""
        source = PicturesBeside((self.reference,))
        return (MatchStatistics(self.reference, self.strength), ReadPictures(source, self.strength))
