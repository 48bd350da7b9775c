"""Pictures that share a subject or a style: each reads the keys of others of its batch."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion.diffusion_control import PICTURE, DiffusionControl
from regard.controls.diffusion.picture_tokens import EachPicture, PictureTokens
from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerRow, PerStep, Strength, strength_of
from regard.controls.token_sets import TokenSet
from regard.core.call import Call
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value


def times(x: Strength, factor: float) -> Strength:
    """Return a strength multiplied by a factor.

    >>> times(PerRow((0.0, 1.0)), 2.0).numbers
    (0.0, 2.0)
    """
    if isinstance(x, PerRow | PerStep):
        return type(x)(tuple(one * factor for one in x.numbers))
    return x * factor


class _Reading(DiffusionControl):
    """Base of controls in which pictures read others; 0 changes nothing."""

    kinds: ClassVar[tuple[str, ...]] = PICTURE
    high: ClassVar[float] = math.inf


@register("storydiffusion")
@method("storydiffusion", call='regard.steer(pipeline, "storydiffusion")')
@value
class StoryDiffusion(_Reading):
    """Keep a subject alike in a batch: each picture also reads a random part of the others.

    `rate` of the tokens of every other picture are drawn, anew at each layer and step and alike in
    all guidance branches; with `window`, of the nearest pictures alone. `strength` multiplies their
    odds: 1 is the paper, 0 changes nothing. (StoryDiffusion, Zhou et al. 2024)

    >>> StoryDiffusion(rate=0.5).edits()[0].source.share
    0.5
    """

    strength: Strength = 1.0
    rate: float = 0.5
    window: int | None = None
    seed: int = 0
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Read a part of the others."""
        others = PicturesBeside(window=self.window, share=self.rate, seed=self.seed)
        return (ReadPictures(others, self.strength),)


@register("freecustom")
@method("freecustom", call="regard.steer(pipeline, controls.diffusion.FreeCustom((0, 1)))")
@value
class FreeCustom(_Reading):
    """Compose concepts: the picture also reads reference pictures, their subjects more strongly.

    `references` are rows of the batch, noised to the same step, which read no others; `masks` holds
    the region of the subject in each, all else in it is not read. The odds of its tokens are
    multiplied by strength e^weight: `weight=3` is the public code of the paper (which adds it to
    the scores); strength 0 changes nothing. In the conditional branch alone. (FreeCustom, Ding et
    al. 2024)

    >>> len(FreeCustom((0, 1)).edits())
    2
    """

    references: tuple[int, ...]
    masks: tuple[TokenSet, ...] = ()
    strength: Strength = 1.0
    weight: float = 3.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    branch: ClassVar[str | None] = "conditional"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "references", _rows(self.references))
        object.__setattr__(self, "masks", tuple(self.masks))
        if self.masks and len(self.masks) != len(self.references):
            fail(
                RuleError, "masks", f"{len(self.masks)} for {len(self.references)} references",
                "one for each", "pass a Region for each reference, or none",
            )  # fmt: skip

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Read each reference."""
        return _each(self.references, self.masks, times(self.strength, math.exp(self.weight)))


@register("reference_attention", "dreamtuner", "lcm_lookahead")
@method("dreamtuner", "lcm_lookahead", call='regard.steer(pipeline, "reference_attention")')
@value
class ReferenceAttention(_Reading):
    """Let pictures read a reference of their batch in fine detail, as strongly as `strength` says.

    Odds of its tokens are multiplied by strength: 1 lets it count like the picture's own, 0 changes
    nothing. `mask` is its subject: nothing else of it is read. Several references are read in one
    softmax, in whatever order. It is the part of DreamTuner (Hua et al. 2023; the reference a
    little less noised than the picture) and of LCM-Lookahead (Gal et al. 2024) that is not trained.

    >>> ReferenceAttention().references
    (0,)
    """

    references: tuple[int, ...] = (0,)
    strength: Strength = 1.0
    mask: TokenSet | None = None
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "references", _rows(self.references))

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Read the references."""
        return (ReadPictures(PicturesBeside(self.references, region=self.mask), self.strength),)


@register("visctrl")
@method("visctrl", call="regard.steer(pipeline, controls.diffusion.VisCtrl(target=Region(...)))")
@value
class VisCtrl(_Reading):
    """Give an object the look of a reference: its tokens read the reference in place of themselves.

    Tokens in `target` attend to those of picture `reference` in `mask`, all others as before.
    Strength 1 is the paper; less leaves 1 - strength of the odds of the own picture; 0 changes
    nothing. Run from an inverted latent, several short rounds, from some step on
    (`where={"steps": range(4, 10)}`). (VisCtrl, Li et al. 2024)

    >>> VisCtrl().edits()[0].instead
    True
    """

    reference: int = 0
    target: TokenSet | None = None
    mask: TokenSet | None = None
    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    high: ClassVar[float] = 1.0

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Read the reference instead."""
        source = PicturesBeside((self.reference,), region=self.mask)
        return (ReadPictures(source, self.strength, self.target, instead=True),)


@register("magicface")
@method(
    "magicface", call="regard.steer(pipeline, controls.diffusion.MagicFace((0,), (Region(...),)))"
)
@value
class MagicFace(_Reading):
    """Compose a person of references: first all may be read, then each region reads its own alone.

    `references` are rows of the batch, `masks` their concepts (or none), `regions` where each of
    these is to be in the picture. In the first `layout_steps` every token may read every concept;
    then tokens of a region read their own reference, instead of `blend` of the own picture. 0
    changes nothing. Regions are given, not found. (MagicFace, Wang et al. 2024)

    >>> from regard.controls.image_tokens import Region
    >>> len(MagicFace((0,), (Region(box=(0, 0, 1, 0.5)),)).edits())
    2
    """

    references: tuple[int, ...]
    regions: tuple[TokenSet, ...]
    masks: tuple[TokenSet, ...] = ()
    strength: Strength = 1.0
    layout_steps: int = 10
    blend: float = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "references", _rows(self.references))
        for name in ("regions", "masks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.regions) != len(self.references):
            fail(
                RuleError, "regions", f"{len(self.regions)} for {len(self.references)} references",
                "one for each", "say where each is to be: Region(box=...)",
            )  # fmt: skip
        if isinstance(self.strength, PerRow | PerStep):
            fail(
                ValueRangeError, "strength", str(self.strength), "one number, since steps have "
                "their own", "pass strength=1.0",
            )  # fmt: skip
        strength_of(self.blend, 0.0, 1.0)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Read all first, then each its own."""
        assert isinstance(self.strength, float)
        early = PerStep((self.strength,) * self.layout_steps + (0.0,))
        later = PerStep((0.0,) * self.layout_steps + (min(self.strength, 1.0) * self.blend,))
        first = _each(self.references, self.masks, early)
        if not self.layout_steps:
            first = ()
        masks = self.masks or (None,) * len(self.references)
        return first + tuple(
            ReadPictures(PicturesBeside((row,), region=mask), later, region, instead=True)
            for row, mask, region in zip(self.references, masks, self.regions, strict=True)
        )


@register("cross_frame_attention", "latent_warp")
@method("latent_warp", call='regard.steer(pipeline, "cross_frame_attention")')
@value
class CrossFrameAttention(_Reading):
    """Let each frame of a video read the first and the one before it, beside itself.

    Frames are the rows of the batch, in their order. `strength` multiplies their odds; 0 changes
    nothing. It is the attention of LatentWarp (Bao et al. 2023), whose other half is `warp_latent`.

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
@method("ouroboros_diffusion", call="regard.steer(model, SubjectAcrossFrames(mask))")
@value
class SubjectAcrossFrames(_Reading):
    """Let frames of a video read the subject in the frames around them, at most `window` away.

    `which` is the region of the subject (a mask may have a row for each frame). 0 changes nothing.
    It is the attention of Ouroboros-Diffusion (Chen et al. 2025), whose queue is filled up by
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


@value
class MatchStatistics(AttentionEdit):
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

    def changes(self, at: EditContext) -> Tensor:
        """Return the tokens of the picture."""
        return at.limit & PictureTokens().mask(at, "queries")

    def before(self, at: EditContext) -> Call:
        """Match queries and keys."""
        call = at.call
        number = torch.as_tensor(at.number(self.strength), device=at.device, dtype=torch.float32)
        if not bool((number != 0).any()):
            return call
        number = number[..., None] if number.dim() == 3 else number
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
class StyleAligned(_Reading):
    """Give all pictures of a batch the style of picture `reference`.

    Each reads its keys, with the mean and deviation of its own queries and keys matched to the
    reference's. 0 changes nothing. Views of a scene get one style so (Style-NeRF2NeRF, Fujiwara et
    al. 2024, in the form of StyleAligned); a scene is then fitted to them by `sliced_wasserstein`.

    >>> StyleAligned().edits()[0]
    MatchStatistics(0, 1.0)
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


def _rows(x: object) -> tuple[int, ...]:
    many = (x,) if isinstance(x, int) and not isinstance(x, bool) else x
    rows = tuple(many) if isinstance(many, tuple | list | range) else ()
    if not rows or any(isinstance(r, bool) or not isinstance(r, int) or r < 0 for r in rows):
        fail(
            RuleError, "references", shape_of(x), "rows of the batch, from 0", "pass (0,)",
        )  # fmt: skip
    return rows


def _each(
    rows: tuple[int, ...], masks: tuple[TokenSet, ...], strength: Strength
) -> tuple[AttentionEdit, ...]:
    """Read each row with its own mask; all together where there are no masks."""
    region = EachPicture(rows, masks) if masks else None
    return (ReadPictures(PicturesBeside(rows, region=region), strength),)


__all__ = [
    "CrossFrameAttention", "FreeCustom", "MagicFace", "MatchStatistics", "ReferenceAttention",
    "StoryDiffusion", "StyleAligned", "SubjectAcrossFrames", "VisCtrl", "times",
]  # fmt: skip
