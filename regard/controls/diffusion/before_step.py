"""Wrappers of a model and its scheduler for controls that change the latent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.controls.diffusion.latent_guidance import guide_latents
from regard.controls.moved_weight import difference
from regard.controls.prompt import Prompt
from regard.controls.receipt import Fired
from regard.models.forward import given_to, telling, told_branches
from regard.models.wrap import Around


class BeforeStep(NamedTuple):
    """A model before a denoising step: latents [b, ...], and its other arguments in `inputs`.

    It is step `step` of `steps`; `kept` is the state a control keeps between steps.
    """

    model: Any
    latents: Tensor
    inputs: Mapping[str, Any]
    step: int
    steps: int
    prompt: Prompt | None
    kept: dict[str, Any]

    def guided(self, by: Callable[..., Any], about: Any, /, *rest: Any, **settings: Any) -> Any:
        """Run a function of `latent_guidance` on it, for words or subjects."""
        if by is not guide_latents:
            settings = {"step": self.step, "steps": self.steps, **settings}
        return by(
            self.model, self.latents, self.inputs, about, *rest, prompt=self.prompt, **settings
        )


class Shift(threading.local):
    """The change of the latent that the model read, by thread, until the scheduler steps."""

    def __init__(self) -> None:
        self.read: Tensor | None = None
        self.added: Tensor | None = None
        self.step, self.time = -1, float("-inf")
        self.kept: dict[str, Any] = {}


class Leading(Around):
    """Wrap the forward of a model, and change the latent that it reads."""

    order = -1  # outside the wrapper that records forwards, inside the one that sets branches

    def __init__(self, steering: Any, shift: Shift) -> None:
        super().__init__()
        self.steering, self.shift = steering, shift

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Update the latent, then run the model on it in every branch."""
        one, here = self.steering, self.shift
        control = one.control
        if one.paused:
            return plain(*args, **kwargs)
        given = dict(given_to(one.model, args, kwargs))
        name = "sample" if "sample" in given else "hidden_states"
        latents = given[name]
        time = float(torch.as_tensor(given["timestep"]).flatten()[0])
        # Times fall; where they rise again, denoising starts again.
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
        if names and not own:  # a separate pass for the other branch
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
                led = control.lead(BeforeStep(
                    one.model, latents[part], inputs, here.step, steps, one.prompt, here.kept
                ))  # fmt: skip
        finally:
            one.paused = False
        added = led.latents - latents[part]
        if bool((added != 0).any()):
            moved = difference(latents[part], led.latents)
            one.receipt.calls.append(Fired(None, here.step, 1, False, (), moved=moved))
            here.read, here.added = latents[part], added
            given[name] = latents + added.repeat(many // len(added), *(1,) * (added.dim() - 1))
        return plain(**given)


class ShiftedStep(Around):
    """Wrap the step of a scheduler, so that it starts from the latent that the model read."""

    def __init__(self, shift: Shift) -> None:
        super().__init__()
        self.shift = shift

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Add the change, in the scheduler's own scale."""
        here, added, read = self.shift, self.shift.added, self.shift.read
        here.added = here.read = None
        if added is None or read is None:
            return plain(*args, **kwargs)
        given = list(args)
        sample = given[2] if len(given) > 2 else kwargs["sample"]
        # Some schedulers scale the model's input.
        scale = (sample * read).sum() / (read * read).sum().clamp(min=1e-12)
        new = sample + (scale * added).to(sample)
        if len(given) > 2:
            given[2] = new
        else:
            kwargs["sample"] = new
        return plain(*given, **kwargs)
