"""Controls that change the latent of a pipeline while it denoises: Attend-and-Excite, A-STAR."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from regard.controls.diffusion.before_step import BeforeStep, Leading, Shift, ShiftedStep
from regard.controls.diffusion.diffusion_control import DiffusionControl, steps_first
from regard.controls.diffusion.latent_guidance import (
    GuidedLatents,
    a_star,
    attend_and_excite,
    guide_latents,
)
from regard.controls.diffusion.map_losses import InsideRegions
from regard.controls.diffusion.picture_tokens import Subject
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerRow, PerStep, Strength
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.value import value
from regard.models.removal import Removal
from regard.models.wrap import hold


class LedLatents(DiffusionControl):
    """Base of controls that change the latent before the model reads it, by a gradient of maps.

    Where guidance branches are known, the gradient is that of the conditional one, and every branch
    reads the new latent. In a pipeline the scheduler also steps from the new latent. In your own
    loop only the model reads it: call `attend_and_excite` or `guide_latents` there yourself.
    """

    branch: ClassVar[str | None] = "conditional"
    high: ClassVar[float] = float("inf")

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        own: Any = self
        steps_first(self.steps, "steps")
        if hasattr(own, "words"):
            object.__setattr__(self, "words", _words(own.words))
        if isinstance(own.strength, PerRow | PerStep):
            fail(
                ValueRangeError, "strength", str(own.strength), "one number",
                "the size of a step falls over the steps by itself: pass strength=1.0",
            )  # fmt: skip

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Return no edits: no call of attention is changed."""
        return ()

    @abstractmethod
    def lead(self, before: BeforeStep) -> GuidedLatents:
        """Return the latents after the gradient steps before a denoising step."""

    def wrap_model(self, steering: Any, undo: Removal) -> None:
        """Wrap the forward, and the step of a pipeline's scheduler."""
        shift = Shift()
        hold(steering.model, "forward", lambda: Leading(steering, shift), steering, undo,
             join=False)  # fmt: skip
        scheduler = getattr(steering.pipeline, "scheduler", None)
        if scheduler is not None:
            hold(scheduler, "step", lambda: ShiftedStep(shift), steering, undo, join=False)


def _words(x: Any) -> tuple[Any, ...]:
    many = (x,) if isinstance(x, str | int | Subject) else x
    found = tuple(many) if isinstance(many, tuple | list) else ()
    if not found:
        fail(RuleError, "words", shape_of(x), "one or more words", 'pass ["cat", "dog"]')
    return found


@register("attend_and_excite")
@value
class AttendAndExcite(LedLatents):
    """Update the latent, in the first half of the steps, until every word is attended to somewhere.

    `words` are words of the prompt, or numbers of its tokens. `peaks` are pairs: a share of the
    steps, and the peak that up to `rounds` updates of the latent try to reach there. Strength 0
    changes nothing; see `attend_and_excite`. (Chefer et al. 2023)

    >>> AttendAndExcite(["cat", "dog"]).words
    ('cat', 'dog')
    """

    words: tuple[Any, ...]
    strength: Strength = 1.0
    rounds: int = 20
    peaks: tuple[tuple[float, float], ...] = ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8))
    sharpen: float = 100.0
    steps: int = 50
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "peaks", tuple((float(a), float(b)) for a, b in self.peaks))

    def lead(self, before: BeforeStep) -> GuidedLatents:
        """Update the latent."""
        made: GuidedLatents = before.guided(
            attend_and_excite, self.words, strength=self.strength, rounds=self.rounds,
            peaks=dict(self.peaks), sharpen=self.sharpen,
        )  # fmt: skip
        return made


@register("a_star")
@value
class AStar(LedLatents):
    """Update the latent so that the maps of words are apart, and stay so from step to step.

    See `a_star`. Strength 0 changes nothing. (A-STAR, Agarwal et al. 2023)

    >>> AStar(["cat", "dog"]).retain
    1.0
    """

    words: tuple[Any, ...]
    strength: Strength = 1.0
    retain: float = 1.0
    sharpen: float = 100.0
    steps: int = 50
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.words) < 2:
            fail(RuleError, "words", shape_of(self.words), "two or more to keep apart", "add one")

    def lead(self, before: BeforeStep) -> GuidedLatents:
        """Push the maps apart."""
        masks = before.kept.setdefault("masks", {})
        made: GuidedLatents
        made, masks[before.step] = before.guided(
            a_star, self.words, strength=self.strength, retain=self.retain, sharpen=self.sharpen,
            before=masks.get(before.step - 1),
        )  # fmt: skip
        return made


@register("inside_regions")
@value
class LeadIntoRegions(LedLatents):
    """Update the latent in the first steps until subjects' words are attended to in their regions.

    It is the guidance by boxes of Bounded Attention: use it with `bounded_attention`. Each of
    `rounds` updates is `strength` times the gradient. (Dahary et al. 2024)

    >>> from regard.controls.image_tokens import Region
    >>> LeadIntoRegions([Subject("cat", Region(box=(0, 0, 1, 0.5)))]).rounds
    3
    """

    subjects: tuple[Subject, ...]
    strength: Strength = 20.0
    rounds: int = 3
    steps: int = 50
    share: float = 0.3
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "subjects", Subject.many(self.subjects))

    def lead(self, before: BeforeStep) -> GuidedLatents:
        """Move words into their regions."""
        many = self.rounds if before.step < self.share * before.steps else 0
        made: GuidedLatents = before.guided(
            guide_latents, self.subjects, InsideRegions(), size=self.strength, times=many
        )
        return made
