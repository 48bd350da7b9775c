"""DiffUHaul: move an object, in a picture that reads a source picture."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from regard.controls.context import EditContext
from regard.controls.diffusion.diffusion_control import (
    PICTURE,
    TEXT,
    AtKinds,
    DiffusionControl,
    steps_first,
)  # fmt: skip
from regard.controls.diffusion.picture_tokens import PictureEdit, Subject
from regard.controls.diffusion.read_pictures import PicturesBeside, ReadPictures
from regard.controls.edit import FORBIDDEN, AttentionEdit, add_bias
from regard.controls.registry import register
from regard.controls.score_edits import queries_of
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerRow, PerStep, Strength, is_neutral, strength_of
from regard.controls.text_tokens import token_set
from regard.controls.token_sets import KnownTokens, TokenSet
from regard.core.call import Call
from regard.core.errors import RuleError, fail, shape_of
from regard.core.method import method
from regard.core.partial import wide
from regard.core.result import Result
from regard.core.value import value


@value
class MovedRegion(KnownTokens):
    """A region of the source picture, and its target region in the others of the batch.

    >>> from regard.controls.image_tokens import Region
    >>> MovedRegion(Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))).row
    0
    """

    source: KnownTokens
    target: KnownTokens
    row: int = 0
    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            x = getattr(self, name)
            if not isinstance(x, KnownTokens) or x.modality != "image":
                fail(RuleError, name, shape_of(x), "a region of the picture", "pass a Region")

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Use the source region in its row, and the target region in the others."""
        made = self.target.positions(at, side)[:1].repeat(at.call.b // at.branches, 1)
        if not 0 <= self.row < len(made):
            fail(
                RuleError, "reference", self.row, f"pictures 0 to {len(made) - 1} of the batch",
                "put the source picture in the batch, and count from 0",
            )  # fmt: skip
        made[self.row] = self.source.positions(at, side)[0]
        return made


@value
class OnlyInRegion(AttentionEdit):
    """Keep picture tokens outside of a region, and some words, from attending to each other.

    The odds are multiplied by 1 - strength: 1 forbids, 0 changes nothing.

    >>> from regard.controls.image_tokens import Region
    >>> OnlyInRegion("cat", Region(box=(0, 0, 1, 0.5))).point
    'scores'
    """

    words: TokenSet
    region: KnownTokens
    strength: Strength = 1.0
    point: ClassVar[str] = "scores"
    law: ClassVar[str] = "at strength 1 words get weight 0 outside of the region; rows sum to one"

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", token_set(self.words))
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))

    def sets(self) -> tuple[TokenSet, ...]:
        """Return the words."""
        return (self.words,)

    def before(self, at: EditContext) -> Call:
        """Lower the scores, in both directions where text attends to the picture."""
        if is_neutral(self.strength, 0.0):
            return at.call
        number = at.tensor(self.strength)
        low = torch.where(number < 1, torch.log1p(-number.clamp(max=1 - 1e-7)), -FORBIDDEN)
        picture = _picture(at, "queries")
        outside = picture & ~self.region.mask(at, "queries")
        parts = [(low * (outside & at.limit), self.words.mask(at))]
        if at.site is not None and at.site.kind == "joint":
            far = _picture(at, "keys") & ~self.region.mask(at)
            parts.append((low * queries_of(at, self.words), far))
        return add_bias(at.call, parts)


def _picture(at: EditContext, side: str) -> Tensor:
    """Mark tokens of the picture, [1, 1, n or m]."""
    many = at.call.n if side == "queries" else at.call.m
    made = torch.zeros(1, 1, many, dtype=torch.bool, device=at.device)
    made[..., at.tokens_at(side, "image")] = True
    return made


@value
class AnchorFeatures(PictureEdit):
    """Move the attention outputs of pictures toward those of the source.

    In the first `soft_steps` the source is mixed in, by a share that falls from 1 to 0, so that the
    layout can change; then each token in the target takes the output of the most similar token of
    the source object (cosine over all heads), and tokens in neither region take the source's at
    the same place. 0 changes nothing.

    >>> from regard.controls.image_tokens import Region
    >>> AnchorFeatures(MovedRegion(*2 * (Region(box=(0, 0, 1, 0.5)),))).soft_steps
    15
    """

    moved: MovedRegion
    strength: Strength = 1.0
    soft_steps: int = 15
    point: ClassVar[str] = "output"
    law: ClassVar[str] = "linear in strength; a source with its object in place changes nothing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))
        steps_first(self.soft_steps, "soft_steps")

    def sets(self) -> tuple[TokenSet, ...]:
        """Return no sets: it has no keys."""
        return ()

    def after(self, at: EditContext, result: Result) -> Result:
        """Mix in the source, or copy from it."""
        if is_neutral(self.strength, 0.0):
            return result
        own, size = at.tokens_at("queries", "image"), at.call.b // at.branches
        old = result.out.to(wide(result.out.dtype))
        x = old[:, :, own]
        rows = torch.arange(at.call.b, device=at.device)
        source = x[rows // size * size + self.moved.row]
        share, step = 1.0, at.forward.step
        if step < self.soft_steps:
            share, new = 1 - step / self.soft_steps, source
        else:
            there, here = (
                y.positions(at, "queries")[0].to(at.device)
                for y in (self.moved.source, self.moved.target)
            )
            new = torch.where(~(there | here)[:, None], source, x)
            flat = [normalize(y.transpose(1, 2).flatten(2), dim=-1) for y in (x, source)]
            like = flat[0][:, here] @ flat[1][:, there].transpose(1, 2)  # [b, target, object]
            best = there.nonzero().flatten()[like.argmax(-1)]
            index = best[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            new[:, :, here] = source.gather(2, index)
        number: Any = at.factor(self.strength)
        mixed = x + share * number * (new - x)
        out = old.clone()
        out[:, :, own] = torch.where((rows % size == self.moved.row)[:, None, None, None], x, mixed)
        return result._replace(out=torch.where(at.limit[..., None], out, old).to(result.out))


@register("diffuhaul")
@method(
    "diffuhaul",
    call="from regard.controls.diffusion import DiffUHaul\n"
    "regard.steer(pipeline, DiffUHaul(left, right))",
)
@value
class DiffUHaul(DiffusionControl):
    """Move an object of picture `reference` from `source` to `target` in the others of its batch.

    All start from the same noise. The others read the source picture's keys and values; their
    features are mixed with the source's in the first `soft_steps`, then copied from the object and
    the background. `words` of the prompt name the object: nothing else attends to them. Strength 0
    changes nothing. (DiffUHaul, Avrahami et al. 2024)

    >>> from regard.controls.image_tokens import Region
    >>> DiffUHaul(Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))).soft_steps
    15
    """

    source: KnownTokens
    target: KnownTokens
    words: TokenSet | None = None
    reference: int = 0
    strength: Strength = 1.0
    soft_steps: int = 15
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.strength, PerRow | PerStep):
            fail(RuleError, "strength", str(self.strength), "one number", "pass strength=1.0")
        if self.words is not None:
            object.__setattr__(self, "words", Subject(self.words, self.source).words)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Keep words in their region, read the source, and anchor to it."""
        moved = MovedRegion(self.source, self.target, self.reference)
        source = PicturesBeside((self.reference,))
        made: tuple[AttentionEdit, ...] = (
            AtKinds((ReadPictures(source, self.strength, instead=True),), PICTURE),
            AtKinds((AnchorFeatures(moved, self.strength, self.soft_steps),), PICTURE),
        )
        if self.words is None:
            return made
        return AtKinds((OnlyInRegion(self.words, moved, self.strength),), TEXT), *made


def independent_noise(picture: Tensor, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """Return a latent [b, ...] with independent noise for each step, [steps, b, ...]: no inversion.

    `alphas` [steps] are the shares of signal (the products of a scheduler).

    >>> x = torch.ones(1, 2)
    >>> independent_noise(x, torch.tensor([1.0, 0.5]), torch.Generator())[0].tolist()
    [[1.0, 1.0]]
    """
    noise = torch.randn(len(alphas), *picture.shape, generator=generator).to(picture)
    own = alphas.to(picture).view(-1, *(1,) * picture.dim())
    return own.sqrt() * picture + (1 - own).sqrt() * noise
