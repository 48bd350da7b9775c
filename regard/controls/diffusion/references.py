"""Pictures that share a subject or a style: each reads the keys of others of its batch."""

from __future__ import annotations

import math
from typing import ClassVar, cast

from regard.controls.diffusion.diffusion_control import PICTURE, DiffusionControl
from regard.controls.diffusion.picture_tokens import EachPicture
from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerRow, PerStep, Strength, strength_of, times
from regard.controls.token_sets import KnownTokens, TokenSet
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value


class ReadingControl(DiffusionControl):
    """Base of controls in which pictures read others; 0 changes nothing."""

    kinds: ClassVar[tuple[str, ...]] = PICTURE
    high: ClassVar[float] = math.inf


@register("storydiffusion")
@method("storydiffusion", call='regard.steer(pipeline, "storydiffusion")')
@value
class StoryDiffusion(ReadingControl):
    """Keep a subject consistent in a batch: each picture also reads a random part of the others.

    A share `rate` of the tokens of every other picture is sampled at each layer and step, the same
    in all guidance branches; with `window`, only of the nearest pictures. `strength` multiplies
    their odds: 1 is the paper, 0 changes nothing. (StoryDiffusion, Zhou et al. 2024)

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
@method(
    "freecustom",
    call="from regard.controls.diffusion import FreeCustom\n"
    "regard.steer(pipeline, FreeCustom((0, 1)))",
)
@value
class FreeCustom(ReadingControl):
    """Compose concepts: the picture also reads reference pictures, their subjects more strongly.

    `references` are rows of the batch, noised to the same step, which read no others; `masks` holds
    the region of the subject in each, all else in it is not read. The odds of its tokens are
    multiplied by strength e^weight: `weight=3` is the public code of the paper (which adds it to
    the scores); strength 0 changes nothing. In the conditional branch alone. (FreeCustom, Ding et
    al. 2024)

    >>> FreeCustom((0, 1)).edits()[0].source.rows
    (0, 1)
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
class ReferenceAttention(ReadingControl):
    """Let pictures read a reference in their batch in fine detail, by `strength`.

    Odds of its tokens are multiplied by strength: 1 counts them like the picture's own, 0 changes
    nothing. `mask` is its subject: nothing else of it is read. Several references are read in one
    softmax, in any order. It is the untrained part of DreamTuner (Hua et al. 2023; with the
    reference slightly less noised than the picture) and of LCM-Lookahead (Gal et al. 2024).

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
@method(
    "visctrl",
    call="from regard.controls.diffusion import VisCtrl\n"
    "regard.steer(pipeline, VisCtrl(target=region))",
)
@value
class VisCtrl(ReadingControl):
    """Give an object the look of a reference: its tokens read the reference instead of themselves.

    Tokens in `target` attend to those of picture `reference` in `mask`, all others as before.
    Strength 1 is the paper; less leaves 1 - strength of the odds of the own picture; 0 changes
    nothing. Run it from an inverted latent, in several short rounds, from some step on
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
    "magicface",
    call="from regard.controls.diffusion import MagicFace\n"
    "regard.steer(pipeline, MagicFace((0,), (region,)))",
)
@value
class MagicFace(ReadingControl):
    """Compose a person from references: first all may be read, then each region reads only its own.

    `references` are rows of the batch, `masks` their concepts (or none), `regions` the target of
    each in the picture. In the first `layout_steps` every token may read every concept; then tokens
    of a region read their own reference, instead of a share `blend` of the own picture. 0 changes
    nothing. Regions are given, not found. (MagicFace, Wang et al. 2024)

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
        """Read all references first, then each region only its own."""
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
    """Read each row with its own mask, or all together without masks."""
    known = cast("tuple[KnownTokens, ...]", masks)  # otherwise `EachPicture` reports which is not
    region = EachPicture(rows, known) if known else None
    return (ReadPictures(PicturesBeside(rows, region=region), strength),)
