"""Keep several subjects as in a reference picture, each apart from the others."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion.layout import kept_apart, spread
from regard.controls.diffusion.picture_tokens import PictureEdit
from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.diffusion.references import ReadingControl
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, strength_of
from regard.controls.token_sets import AnyOf, TokenSet
from regard.core.call import Call
from regard.core.errors import RuleError, fail, shape_of
from regard.core.method import method
from regard.core.value import value


def _regions(x: Any, name: str) -> tuple[TokenSet, ...]:
    many = tuple(x) if isinstance(x, tuple | list) else (x,)
    if not many or not all(isinstance(r, TokenSet) and r.modality == "image" for r in many):
        fail(RuleError, name, shape_of(x), "a region for each subject", "pass (Region(box=...),)")
    return many


@value
class ReadOwnSubject(PictureEdit):
    """Let a picture read the subjects of a reference, each subject only its own.

    Tokens in `regions[i]` attend neither to other subjects of the picture nor to those of the
    reference; all other tokens may read any. Strength multiplies the odds of the reference; 0
    changes nothing.

    >>> from regard.controls.image_tokens import Region
    >>> half = (Region(box=(0, 0, 1, 0.5)),)
    >>> ReadOwnSubject(0, half, half).strength
    1.0
    """

    reference: int
    regions: tuple[TokenSet, ...]
    masks: tuple[TokenSet, ...]
    strength: Strength = 1.0
    point: ClassVar[str] = "keys, scores"
    law: ClassVar[str] = (
        "one subject reads as any picture that reads a mask; of several, other subjects get weight "
        "0; rows sum to one"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0))
        for name in ("regions", "masks"):
            object.__setattr__(self, name, _regions(getattr(self, name), name))
        if len(self.regions) != len(self.masks):
            fail(
                RuleError, "masks", f"{len(self.masks)} for {len(self.regions)} regions",
                "one for each", "say where each subject is in the reference",
            )  # fmt: skip

    def before(self, at: EditContext) -> Call:
        """Read the reference, and keep subjects apart in both pictures."""
        every = self.masks[0] if len(self.masks) == 1 else AnyOf(self.masks)
        reading = ReadPictures(PicturesBeside((self.reference,), region=every), self.strength)
        call = reading.before(at)
        if call is at.call or len(self.regions) == 1:
            return call
        b, size = call.b, call.b // at.branches
        rows = torch.arange(b, device=at.device)
        source = rows // size * size + self.reference
        reads = (rows != source)[:, None, None] & at.limit
        inside = torch.stack([x.mask(at, "queries").expand(b, 1, call.n) for x in self.regions])
        image = at.tokens_at("keys", "image")
        keys = torch.stack([
            torch.cat((spread(own.mask(at), b), spread(mask.mask(at), b)[source][..., image]), 2)
            for own, mask in zip(self.regions, self.masks, strict=True)
        ])  # fmt: skip
        one: Tensor = torch.ones((), device=at.device)
        return kept_apart(call, inside & reads, keys, one)


@register("isolated_subjects", "ir_diffusion")
@method(
    "ir_diffusion",
    call="from regard.controls.diffusion import IsolatedSubjects\n"
    "regard.steer(pipeline, IsolatedSubjects((left, right), (right, left)))",
)
@value
class IsolatedSubjects(ReadingControl):
    """Keep several subjects as in a reference picture, and apart from one another.

    `regions` are the targets of the subjects, `masks` their places in picture `reference` of the
    batch. Strength 0 changes nothing. Where keys have no positions, a subject is found wherever it
    is; to move and scale the reference to the region, change its latent.
    (The isolation of IR-Diffusion, He et al. 2024)

    >>> from regard.controls.image_tokens import Region
    >>> left, right = Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))
    >>> IsolatedSubjects((left, right), (right, left)).reference
    0
    """

    regions: tuple[TokenSet, ...]
    masks: tuple[TokenSet, ...]
    reference: int = 0
    strength: Strength = 1.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Let each region read its own subject."""
        return (ReadOwnSubject(self.reference, self.regions, self.masks, self.strength),)
