"""Controls that step the latent of a pipeline while it denoises: Attend-and-Excite, A-STAR."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

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
from regard.controls.moved_weight import difference
from regard.controls.receipt import Fired
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import PerRow, PerStep, Strength
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.value import value
from regard.models.forward import given_to, telling, told_branches
from regard.models.removal import Removal
from regard.models.wrap import Around, hold


class LedLatents(DiffusionControl):
    """Base of controls that change the latent before the model reads it, by a gradient of maps.

    Where guidance branches are told, the gradient is that of the conditional one, and every branch
    reads the new latent. With a pipeline its scheduler steps from the new latent too. In a loop of
    one's own only the model reads it: there, call `attend_and_excite` or `guide_latents` oneself.
    """

    branch: ClassVar[str | None] = "conditional"
    high: ClassVar[float] = float("inf")

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        own: Any = self
        steps_first(self.steps, "steps")
        if isinstance(own.strength, PerRow | PerStep):
            fail(
                ValueRangeError, "strength", str(own.strength), "one number",
                "the size of a step falls over the steps by itself: pass strength=1.0",
            )  # fmt: skip

    def edits(self) -> tuple[AttentionEdit, ...]:
        """None: no call of attention is changed."""
        return ()

    @abstractmethod
    def lead(
        self, model: Any, latents: Tensor, inputs: Mapping[str, Any], step: int, steps: int,
        kept: dict[str, Any],
    ) -> GuidedLatents:  # fmt: skip
        """Return latents [b, ...] after the gradient steps that belong before a step.

        `inputs` are the other arguments of the model; `kept` is what it keeps from step to step.
        """

    def wrap_model(self, steering: Any, undo: Removal) -> None:
        """Stand around the forward, and around the step of a pipeline's scheduler."""
        shift = _Shift()
        hold(steering.model, "forward", lambda: _Leading(steering, shift), steering, undo,
             join=False)  # fmt: skip
        scheduler = getattr(steering.pipeline, "scheduler", None)
        if scheduler is not None:
            hold(scheduler, "step", lambda: _Shifted(shift), steering, undo, join=False)


class _Shift(threading.local):
    """What was added to the latent that the model read: by thread, until the scheduler steps."""

    def __init__(self) -> None:
        self.read: Tensor | None = None
        self.added: Tensor | None = None
        self.step, self.time = -1, float("-inf")
        self.kept: dict[str, Any] = {}


class _Leading(Around):
    """Around the forward of a model: changes the latent that it reads."""

    order = -1  # outside of what notes the forward, inside of what tells branches

    def __init__(self, steering: Any, shift: _Shift) -> None:
        super().__init__()
        self.steering, self.shift = steering, shift

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Step the latent, then run the model on it in every branch."""
        one, here = self.steering, self.shift
        control = one.control
        if one.paused:
            return plain(*args, **kwargs)
        given = dict(given_to(one.model, args, kwargs))
        name = "sample" if "sample" in given else "hidden_states"
        latents = given[name]
        time = float(torch.as_tensor(given["timestep"]).flatten()[0])
        # Times fall; where they rise again, denoising begins anew.
        here.step = 0 if time > here.time else here.step + (time < here.time)
        if time > here.time:
            here.kept = {}
        here.time = time
        scheduler = getattr(one.pipeline, "scheduler", None)
        steps = getattr(scheduler, "num_inference_steps", None) or control.steps
        wanted = control.where.steps
        if here.step >= steps or (wanted is not None and here.step not in wanted):
            return plain(**given)
        names = told_branches() or ()
        own = [i for i, x in enumerate(names) if x.startswith(str(control.branch))]
        if names and not own:  # a pass of its own for the other branch
            if here.added is not None and here.added.shape == latents.shape:
                given[name] = latents + here.added
            return plain(**given)
        part = slice(None)
        if len(names) > 1 and own:
            size = len(latents) // len(names)
            part = slice(own[0] * size, (own[0] + 1) * size)
        many = len(latents)
        inputs = {
            k: x[part] if isinstance(x, Tensor) and x.dim() and len(x) == many else x
            for k, x in given.items() if k != name
        }  # fmt: skip
        one.paused = True
        try:
            with telling(str(control.branch)):
                here.kept["prompt"] = one.prompt
                led = control.lead(one.model, latents[part], inputs, here.step, steps, here.kept)
        finally:
            one.paused = False
        added = led.latents - latents[part]
        if bool((added != 0).any()):
            moved = difference(latents[part], led.latents)
            one.receipt.calls.append(Fired(None, here.step, 1, False, (), moved=moved))
            here.read, here.added = latents[part], added
            given[name] = latents + added.repeat(many // len(added), *(1,) * (added.dim() - 1))
        return plain(**given)


class _Shifted(Around):
    """Around the step of a scheduler: it steps from the latent that the model read."""

    def __init__(self, shift: _Shift) -> None:
        super().__init__()
        self.shift = shift

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Add what was added, in the scheduler's own scale."""
        here, added, read = self.shift, self.shift.added, self.shift.read
        here.added = here.read = None
        if added is None or read is None:
            return plain(*args, **kwargs)
        given = list(args)
        sample = given[2] if len(given) > 2 else kwargs["sample"]
        # Some schedulers scale what the model reads.
        scale = (sample * read).sum() / (read * read).sum().clamp(min=1e-12)
        new = sample + (scale * added).to(sample)
        if len(given) > 2:
            given[2] = new
        else:
            kwargs["sample"] = new
        return plain(*given, **kwargs)


def _words(x: Any) -> tuple[Any, ...]:
    many = (x,) if isinstance(x, str | int | Subject) else x
    found = tuple(many) if isinstance(many, tuple | list) else ()
    if not found:
        fail(RuleError, "words", shape_of(x), "one or more words", 'pass ["cat", "dog"]')
    return found


@register("attend_and_excite")
@value
class AttendAndExcite(LedLatents):
    """Step the latent, in the first half of the steps, until every word has a place that looks.

    `words` are words of the prompt, or numbers of its tokens. `peaks` are pairs of a share of the
    steps, and of the peak that as many as `rounds` steps of the latent go for there. Strength 0
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
        object.__setattr__(self, "words", _words(self.words))
        object.__setattr__(self, "peaks", tuple((float(a), float(b)) for a, b in self.peaks))

    def lead(
        self, model: Any, latents: Tensor, inputs: Mapping[str, Any], step: int, steps: int,
        kept: dict[str, Any],
    ) -> GuidedLatents:  # fmt: skip
        """Nudge the latent."""
        assert isinstance(self.strength, float)
        return attend_and_excite(
            model, latents, inputs, self.words, step=step, steps=steps, strength=self.strength,
            rounds=self.rounds, peaks=dict(self.peaks), sharpen=self.sharpen,
            prompt=kept.get("prompt"),
        )  # fmt: skip


@register("a_star")
@value
class AStar(LedLatents):
    """Step the latent so that words have places apart, and keep these from step to step.

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
        object.__setattr__(self, "words", _words(self.words))
        if len(self.words) < 2:
            fail(RuleError, "words", shape_of(self.words), "two or more to keep apart", "add one")

    def lead(
        self, model: Any, latents: Tensor, inputs: Mapping[str, Any], step: int, steps: int,
        kept: dict[str, Any],
    ) -> GuidedLatents:  # fmt: skip
        """Push places apart."""
        assert isinstance(self.strength, float)
        masks = kept.setdefault("masks", {})
        made, masks[step] = a_star(
            model, latents, inputs, self.words, step=step, steps=steps, strength=self.strength,
            retain=self.retain, sharpen=self.sharpen, before=masks.get(step - 1),
            prompt=kept.get("prompt"),
        )  # fmt: skip
        return made


@register("inside_regions")
@value
class LeadIntoRegions(LedLatents):
    """Step the latent, in the first steps, until words of subjects are looked at in their regions.

    It is the guidance by boxes of Bounded Attention: run `bounded_attention` beside it. Each of
    `rounds` steps is `strength` times the gradient. (Dahary et al. 2024)

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

    def lead(
        self, model: Any, latents: Tensor, inputs: Mapping[str, Any], step: int, steps: int,
        kept: dict[str, Any],
    ) -> GuidedLatents:  # fmt: skip
        """Lead words into their regions."""
        assert isinstance(self.strength, float)
        many = self.rounds if step < self.share * steps else 0
        return guide_latents(
            model, latents, inputs, self.subjects, InsideRegions(), size=self.strength, times=many,
            prompt=kept.get("prompt"),
        )  # fmt: skip


__all__ = ["AStar", "AttendAndExcite", "LeadIntoRegions", "LedLatents"]
