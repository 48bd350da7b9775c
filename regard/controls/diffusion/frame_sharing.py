"""Frames and segments of a video that read one another."""

from __future__ import annotations

from typing import ClassVar

from regard.controls.diffusion.diffusion_control import AtKinds
from regard.controls.diffusion.picture_tokens import PictureTokens, PromptTokens
from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.diffusion.references import ReadingControl
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength
from regard.controls.token_sets import TokenSet
from regard.core.errors import RuleError, fail
from regard.core.method import method
from regard.core.value import value


@register("cross_frame_attention", "latent_warp")
@method("latent_warp", call='regard.steer(pipeline, "cross_frame_attention")')
@value
class CrossFrameAttention(ReadingControl):
    """Let each frame of a video also read the first frame and the previous one.

    Frames are the rows of the batch, in order. `strength` multiplies their odds; 0 changes nothing.
    It is the attention of LatentWarp (Bao et al. 2023), whose other half is `warp_latent`.

    >>> CrossFrameAttention().edits()[0].source
    PicturesBeside((0,), previous=True)
    """

    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Read two frames."""
        return (ReadPictures(PicturesBeside((0,), previous=True), self.strength),)


@register("subject_across_frames", "ouroboros_diffusion")
@method(
    "ouroboros_diffusion",
    call="from regard.controls.diffusion import SubjectAcrossFrames\n"
    "regard.steer(model, SubjectAcrossFrames(mask))",
)
@value
class SubjectAcrossFrames(ReadingControl):
    """Let frames of a video read the subject in the frames around them, at most `window` away.

    `which` is the region of the subject (a mask may have a row for each frame). 0 changes nothing.
    It is the attention of Ouroboros-Diffusion (Chen et al. 2025), whose queue is extended by
    `tail_latent`.

    >>> from regard.controls.image_tokens import Region
    >>> SubjectAcrossFrames(Region(box=(0, 0, 1, 0.5))).window
    4
    """

    which: TokenSet
    strength: Strength = 1.0
    window: int = 4
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Read the subject."""
        source = PicturesBeside(window=self.window, region=self.which)
        return (ReadPictures(source, self.strength),)


@register("ditctrl")
@method(
    "ditctrl",
    call="from regard.controls.diffusion import DiTCtrl\n"
    "regard.steer(transformer, DiTCtrl(mask=mask, target=mask))",
)
@value
class DiTCtrl(ReadingControl):
    """Continue a video: the next segment reads the last one instead of itself, text included.

    `source` is the row of the last segment. With `mask` (the object in it) and `target` (in the
    segments that read), tokens of the object read only the object, other picture tokens only the
    rest.
    Strength 1 is the paper, in late layers and early steps (`where={"layers": range(25, 30),
    "steps": range(2, 25)}` of 30 and 50); 0 changes nothing. Segments are joined by
    `blend_segments`. (DiTCtrl, Cai et al. 2024)

    >>> DiTCtrl().edits()[0].source.text
    True
    """

    source: int = 0
    mask: TokenSet | None = None
    target: TokenSet | None = None
    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mask is None) != (self.target is None):
            fail(
                RuleError, "mask", "one of mask and target", "both, or none",
                "say where the object is in both segments",
            )  # fmt: skip

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Read the segment, separately for object and background if masks are given."""
        if self.mask is None or self.target is None:
            whole = PicturesBeside((self.source,), text=True)
            return (ReadPictures(whole, self.strength, instead=True),)
        rest = PictureTokens() & ~self.target
        edits = tuple(
            ReadPictures(
                PicturesBeside((self.source,), region=mask, text=True), self.strength, queries,
                instead=True,
            )
            for mask, queries in ((self.mask, self.target), (~self.mask, rest))
        )  # fmt: skip
        # Text reads all of the segment: masks are between picture tokens.
        whole = PicturesBeside((self.source,), text=True)
        text = ReadPictures(whole, self.strength, PromptTokens(), instead=True)
        return (*edits, AtKinds((text,), ("joint",)))
