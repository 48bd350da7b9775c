"""AutoStudio: several subjects in one picture, each region with its own text and image."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion.added_attention import SubjectTokens
from regard.controls.diffusion.diffusion_control import TEXT, DiffusionControl
from regard.controls.diffusion.picture_tokens import PictureEdit, PromptTokens
from regard.controls.edit import AttentionEdit, apply
from regard.controls.key_edits import ExtraKeys, FoundKeys, KeySource, ReplaceKeys
from regard.controls.registry import register
from regard.controls.score_edits import Forbid
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.token_sets import AnyOf, TokenSet
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.partial import wide
from regard.core.result import Result
from regard.core.value import value
from regard.models.attach import hook_of
from regard.run.runner import run


@value
class SubjectKeys(KeySource):
    """The keys and values that the tokens of a subject have at each site.

    >>> subject = SubjectTokens(torch.ones(2, 3), ("a",), (torch.ones(8, 3),), (torch.ones(8, 3),))
    >>> SubjectKeys(subject).subject.sites
    ('a',)
    """

    subject: SubjectTokens

    def find(self, at: EditContext) -> FoundKeys | None:
        """Repeat them for the rows of the batch; None if the subject has no weights here."""
        call = at.call
        found = None if at.site is None else self.subject.keys_at(at.site.module, call.h)
        if found is None:
            return None
        return FoundKeys(*(x.to(call.q).expand(call.b, -1, -1, -1) for x in found))


def prompt_subject(model: Any, states: Tensor) -> SubjectTokens:
    """Return a text as a subject: its encoder states [x, c], with the model's own projections.

    It needs a model with cross-attention to text; where text and picture share one attention, the
    states of a text depend on the layer.
    """
    sites, to_k, to_v = [], [], []
    for site in hook_of(model)[1]:
        module = model.get_submodule(site.module) if site.kind == "cross" else None
        parts: list[Any] = [getattr(module, x, None) for x in ("to_k", "to_v")]
        plain = all(x is not None and getattr(x, "bias", None) is None for x in parts)
        if plain and getattr(module, "norm_k", None) is None:
            sites.append(site.module)
            to_k.append(parts[0].weight.detach())
            to_v.append(parts[1].weight.detach())
    if not sites:
        fail(
            CapabilityError, "model", type(model).__name__, "cross-attention to a text by plain "
            "projections", "pass SubjectTokens with weights for the sites of this model",
        )  # fmt: skip
    return SubjectTokens(states, tuple(sites), tuple(to_k), tuple(to_v))


@value
class ComposeSubjects(PictureEdit):
    """In each region, mix with attention to a subject: out + s (text + b image - out).

    `texts[i]` replaces the prompt for tokens in `regions[i]`; where text and picture share one
    attention, the picture is still read. `images[i]` is attended to separately, and added
    `image_strength` times. Tokens in several regions get the mean; those in none are unchanged.

    >>> ComposeSubjects.point
    'output'
    """

    texts: tuple[SubjectTokens, ...]
    regions: tuple[TokenSet, ...]
    images: tuple[SubjectTokens, ...] = ()
    strength: Strength = 1.0
    image_strength: float = 0.0
    point: ClassVar[str] = "output"
    law: ClassVar[str] = (
        "linear in strength; at 1 and without images a region attends to its own text in place of "
        "the prompt; nothing changes outside of all regions"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength))
        for name in ("texts", "images"):
            many = tuple(getattr(self, name))
            object.__setattr__(self, name, many)
            if not all(isinstance(x, SubjectTokens) for x in many):
                fail(RuleError, name, shape_of(many), "SubjectTokens", "see prompt_subject")
            if len(many) != len(self.regions) and (many or name == "texts"):
                fail(
                    RuleError, name, f"{len(many)} for {len(self.regions)} regions",
                    "one for each", "pass a Region for each subject",
                )  # fmt: skip
        if not self.regions:
            fail(RuleError, "regions", "none", "one or more", "pass Region(box=(0, 0, 1, 0.5))")
        if not math.isfinite(self.image_strength):
            fail(ValueRangeError, "image_strength", self.image_strength, "a number", "pass 0.5")

    def sets(self) -> tuple[TokenSet, ...]:
        """Return no sets: none of its keys are the model's."""
        return ()

    def changes(self, at: EditContext) -> Tensor:
        """Return tokens of the picture in any region."""
        return super().changes(at) & AnyOf(self.regions).mask(at, "queries")

    def after(self, at: EditContext, result: Result) -> Result:
        """Attend to each subject, and combine the results."""
        if is_neutral(self.strength, 0.0):
            return result
        masks = [x.mask(at, "queries")[..., None].to(wide(at.call.q.dtype)) for x in self.regions]
        new: Any = 0.0
        for i, mask in enumerate(masks):
            text = SubjectKeys(self.texts[i])
            if text.find(at) is None:
                return result
            new = new + mask * _branch(at, (Forbid(PromptTokens()), ExtraKeys(text)))
            if self.images and self.image_strength:
                image = (ReplaceKeys(SubjectKeys(self.images[i])),)
                new = new + self.image_strength * mask * _branch(at, image)
        old = result.out.to(wide(result.out.dtype))
        new = new / sum(masks).clamp(min=1)  # type: ignore[union-attr]
        mixed = old + at.factor(self.strength) * (new - old)
        return result._replace(
            out=torch.where(self.changes(at)[..., None], mixed, old).to(result.out)
        )


def _branch(at: EditContext, edits: tuple[AttentionEdit, ...]) -> Tensor:
    """Compute the output of a call with edits, [b, h, n, e]."""
    call, _ = apply(edits, at)
    return run(call).out.to(wide(call.q.dtype))


@register("autostudio")
@method(
    "autostudio",
    call="from regard.controls.diffusion import AutoStudio, prompt_subject\n"
    "texts = [prompt_subject(unet, states) for states in subject_states]\n"
    "regard.steer(pipeline, AutoStudio(texts, regions))",
)
@value
class AutoStudio(DiffusionControl):
    """Generate subjects in regions, each from its own text and its own image.

    `texts` and `images` are `SubjectTokens`; `prompt_subject` makes those of a text from encoder
    states. The global prompt keeps 1 - strength of the output; 0 changes nothing. It is the drawer
    of the paper: you provide subjects and boxes, which come from language models there, and the
    image adapter is trained elsewhere. (AutoStudio, Cheng et al. 2024)

    >>> from regard.controls.image_tokens import Region
    >>> weights = ("a",), (torch.ones(8, 3),), (torch.ones(8, 3),)
    >>> text = SubjectTokens(torch.ones(2, 3), *weights)
    >>> AutoStudio((text,), (Region(box=(0, 0, 1, 0.5)),)).strength
    0.7
    """

    texts: tuple[SubjectTokens, ...]
    regions: tuple[TokenSet, ...]
    images: tuple[SubjectTokens, ...] = ()
    strength: Strength = 0.7
    image_strength: float = 0.5
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    kinds: ClassVar[tuple[str, ...]] = TEXT
    branch: ClassVar[str | None] = "conditional"

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Compose the subjects."""
        return (
            ComposeSubjects(
                self.texts, self.regions, self.images, self.strength, self.image_strength
            ),
        )
