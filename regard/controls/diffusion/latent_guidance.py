"""Gradient steps on a latent, from losses of its attention to the prompt."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regard.controls.context import EditContext
from regard.controls.diffusion.diffusion_control import TEXT
from regard.controls.diffusion.map_losses import MapLoss, NeglectedWord, SeparateWords, TextMaps
from regard.controls.diffusion.picture_tokens import Subject, TextPositions
from regard.controls.image_tokens import grid_of
from regard.controls.moved_weight import rows_at
from regard.controls.prompt import Prompt
from regard.controls.text_tokens import token_set
from regard.controls.token_sets import TokenPositions, TokenSet
from regard.core.call import Call
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.stage import Stage
from regard.run.rows import rows_of
from regard.run.runner import run

# Maps are read at the sites whose pictures have about this many tokens: 16 x 16.
TOKENS = 256


class _Reading(Stage):
    """Record maps of the prompt at every site that reads it, with gradients."""

    def __init__(
        self, prompt: Prompt, words: Sequence[TokenSet], regions: Sequence[TokenSet]
    ) -> None:
        super().__init__({"kinds": TEXT})
        self.prompt, self.words, self.regions = prompt, words, regions
        self.found: dict[int, list[Tensor]] = {}
        self.told: dict[int, tuple[Any, ...]] = {}

    def see(self, call: Call, result: Result) -> None:
        """Attend to indicators of the prompt's tokens."""
        at = EditContext(call, self.prompt)
        text, image = at.tokens_at("keys", "text"), at.tokens_at("queries", "image")
        marks = torch.eye(call.m, dtype=call.q.dtype, device=call.q.device)[:, text]
        marks = marks.expand(*call.k.shape[:2], -1, -1)
        own = rows_of(call, image)
        if call.rule.score.steps:  # what another control sets for each query follows its rows
            line = torch.arange(image.start, image.stop, device=call.q.device)
            own = rows_at(call, line.expand(call.b, -1))
        own = own.replace(v=marks, dropout=0.0)
        tokens = own.n
        self.found.setdefault(tokens, []).append(run(own).out.float().mean(1))
        if tokens not in self.told:
            sets = tuple(x.mask(at).any(1)[:, text] for x in self.words)
            places = tuple(x.mask(at, "queries").any(1)[:, image] for x in self.regions)
            self.told[tokens] = (grid_of(at, tokens), sets, places)

    def maps(self, tokens: int) -> TextMaps:
        """Return the mean over the sites whose picture has about this many tokens."""
        size = min(self.found, key=lambda n: abs(math.log(n / tokens)))
        grid, sets, places = self.told[size]
        return TextMaps(torch.stack(self.found[size]).mean(0), grid, sets, places)


class GuidedLatents(NamedTuple):
    """Latents after some steps, losses before each and after the last [steps + 1, b], and maps."""

    latents: Tensor
    losses: Tensor
    maps: TextMaps


def guide_latents(
    model: nn.Module, latents: Tensor, inputs: Mapping[str, Any], words: Sequence[Any],
    loss: MapLoss, *, size: float = 20.0, times: int = 1, until: float | None = None,
    tokens: int = TOKENS, prompt: Any = None, tokenizer: Any = None,
) -> GuidedLatents:  # fmt: skip
    """Move the latents of an image model down the gradient of a loss of its maps.

    `inputs` are the other arguments of the model, only of the conditional branch. `words` are words
    (which need ids as `prompt` and a `tokenizer`), numbers of text tokens, or subjects with
    regions. Each of `times` steps is `size` times the gradient; pictures whose loss is at most
    `until` stop. The model is left unchanged, and its parameters get no gradients.

        z = guide_latents(unet, z, {"timestep": t, "encoder_hidden_states": text}, [2, 5],
                          NeglectedWord()).latents
    """
    subjects = [x for x in words if isinstance(x, Subject)]
    sets = [_words_of(x.words if isinstance(x, Subject) else x) for x in words]
    if not sets or (subjects and len(subjects) != len(sets)):
        fail(RuleError, "words", shape_of(words), "words, or subjects alone", "pass [2, 5], say")
    if isinstance(times, bool) or not isinstance(times, int) or times < 0:
        fail(ValueRangeError, "times", shape_of(times), "a whole number from 0", "pass 1")
    given = prompt if isinstance(prompt, Prompt) else Prompt(prompt, tokenizer)
    names = inspect.signature(type(model).forward).parameters
    name = "sample" if "sample" in names else "hidden_states"
    regions = [x.region for x in subjects]
    here, losses = latents.detach(), []
    for step in range(times + 1):
        seen = _Reading(given, sets, regions)
        with torch.enable_grad(), attach(model, seen, check=False):
            z = here.clone().requires_grad_()
            model(**{name: z, **inputs})
            maps = seen.maps(tokens)
            apart = loss.loss(maps)
            losses.append(apart.detach())
            goes = apart.detach() > (-math.inf if until is None else until)
            if step == times or not bool(goes.any()):
                break
            (slope,) = torch.autograd.grad(apart.sum(), z)
        goes = goes.view(-1, *(1,) * (here.dim() - 1))
        here = torch.where(goes, here - size * slope, here)
    still = maps._replace(maps=maps.maps.detach())
    return GuidedLatents(here, torch.stack(losses), still)


def _words_of(x: Any) -> TokenSet:
    found = token_set(x)
    return TextPositions(found.numbers) if isinstance(found, TokenPositions) else found


@method(
    "attend_and_excite",
    call="from regard.controls.diffusion import attend_and_excite\n"
    "attend_and_excite(model, latents, inputs, words=[2, 3], step=0, steps=50).latents",
)
def attend_and_excite(
    model: nn.Module, latents: Tensor, inputs: Mapping[str, Any], words: Sequence[Any], *,
    step: int, steps: int, strength: float = 1.0, rounds: int = 20,
    peaks: Mapping[float, float] | None = None, **settings: Any,
) -> GuidedLatents:  # fmt: skip
    """Update latents before a denoising step, until every word has a place that attends to it.

    The step size is 20 strength sqrt(r), with r falling from 1 to 0.5 over the `steps`; after half
    of them nothing is done. At the shares of the steps in `peaks` (0, 0.2 and 0.4, with peaks of
    0.05, 0.5 and 0.8) up to `rounds` steps are taken until the smallest peak is reached.
    Strength 0 returns the latents. (Chefer et al. 2023)
    """
    _need_step(step, steps)
    wanted = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8} if peaks is None else dict(peaks)
    peak = next((p for share, p in wanted.items() if round(share * steps) == step), None)
    size = 20.0 * strength * math.sqrt(1 - 0.5 * step / steps)
    many = 0 if strength == 0 or 2 * step >= steps else rounds if peak is not None else 1
    until = 1 - peak if peak is not None else None
    loss = NeglectedWord(**{k: settings.pop(k) for k in ("sharpen", "smooth", "ignore")
                            if k in settings})  # fmt: skip
    return guide_latents(
        model, latents, inputs, words, loss, size=size, times=many, until=until, **settings
    )


@method(
    "a_star",
    call="from regard.controls.diffusion import a_star\n"
    "found, before = a_star(model, latents, inputs, words=[2, 3], step=0, steps=50)",
)
def a_star(
    model: nn.Module, latents: Tensor, inputs: Mapping[str, Any], words: Sequence[Any], *,
    step: int, steps: int, before: Tensor | None = None, strength: float = 1.0, retain: float = 1.0,
    threshold: float = 0.5, **settings: Any,
) -> tuple[GuidedLatents, Tensor]:  # fmt: skip
    """Push the maps of words apart, and keep each where it was in the step before.

    Returns the latents, and the masks [words, b, n] to be passed as `before` at the next step.
    After half of the steps nothing is done; strength 0 returns the latents. (A-STAR, Agarwal et
    al. 2023)
    """
    _need_step(step, steps)
    loss = SeparateWords(before, retain, threshold, **{
        k: settings.pop(k) for k in ("sharpen", "smooth", "ignore") if k in settings
    })  # fmt: skip
    size = 20.0 * strength * math.sqrt(1 - 0.5 * step / steps)
    many = 0 if strength == 0 or 2 * step >= steps else 1
    found = guide_latents(model, latents, inputs, words, loss, size=size, times=many, **settings)
    return found, loss.keep(found.maps)


def _need_step(step: int, steps: int) -> None:
    good = all(isinstance(x, int) and not isinstance(x, bool) for x in (step, steps))
    if not good or not 0 <= step < steps:
        fail(ValueRangeError, "step", f"{step} of {steps}", "0 to steps - 1", "count steps from 0")
