"""Guidance away from degraded attention: PAG, SEG and NAG."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.diffusion.diffusion_control import PICTURE, TEXT, DiffusionControl
from regard.controls.diffusion.picture_tokens import PictureEdit
from regard.controls.edit import AttentionEdit
from regard.controls.image_tokens import grid_of
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, is_neutral, strength_of, times
from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail, shape_of
from regard.core.heads import expand_heads
from regard.core.result import Result
from regard.core.value import value
from regard.run.runner import run


@value
class KeepOwnValues(PictureEdit):
    """Let each picture token attend only to itself: its output is its own value.

    >>> KeepOwnValues().point
    'output'
    """

    point: ClassVar[str] = "output"
    law: ClassVar[str] = "weights of tokens of the picture are the identity"

    def after(self, at: EditContext, result: Result) -> Result:
        """Replace outputs by values."""
        own = expand_heads(at.call.v, at.call.h)[:, :, : at.call.n].to(result.out)
        return result._replace(out=torch.where(self.changes(at)[..., None], own, result.out))


@value
class BlurQueries(PictureEdit):
    """Blur the queries of the picture over its rows and columns, with a Gaussian of `sigma` tokens.

    0 changes nothing; infinity gives every token the mean query. Weights at the border are
    normalized, so that equal queries do not change.

    >>> BlurQueries(math.inf).sigma
    inf
    """

    sigma: float = 10.0
    point: ClassVar[str] = "queries"
    law: ClassVar[str] = "each query is a mean of queries around it; their mean at sigma infinity"

    def __post_init__(self) -> None:
        x = self.sigma
        if isinstance(x, bool) or not isinstance(x, int | float) or not x >= 0:
            fail(ValueRangeError, "sigma", shape_of(x), "a number of tokens, from 0", "pass 10.0")
        object.__setattr__(self, "sigma", float(x))

    def before(self, at: EditContext) -> Call:
        """Blur the queries."""
        if self.sigma == 0:
            return at.call
        own = at.tokens_at("queries", "image")
        q = at.call.q[:, :, own]
        rows, columns = grid_of(at, q.shape[2])
        down, across = (blur_weights(size, self.sigma, q) for size in (rows, columns))
        spread = q.float().unflatten(2, (rows, columns))
        spread = torch.einsum("ij,kl,bhjld->bhikd", down, across, spread).flatten(2, 3)
        whole = at.call.q.clone()
        whole[:, :, own] = spread.to(q)
        q = torch.where(at.limit[..., None], whole, at.call.q)
        return at.call.replace(q=q)


def blur_weights(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return the weights of a blur [size, size], with rows that sum to one.

    >>> blur_weights(2, math.inf, torch.zeros(1)).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    line = torch.arange(size, device=like.device, dtype=torch.float32)
    apart = line[:, None] - line
    return (-((apart / sigma) ** 2) / 2).softmax(-1)


class _Away(DiffusionControl):
    """Base of guidance away from the output with edited attention."""

    strength: Strength
    kinds: ClassVar[tuple[str, ...]] = PICTURE
    branch: ClassVar[str | None] = "conditional"
    high: ClassVar[float] = math.inf

    @property
    def guidance(self) -> Strength:
        """Return the negative strength: guidance away."""
        return times(self.strength, -1.0)


@register("perturbed_attention_guidance", "pag")
@value
class PerturbedAttentionGuidance(_Away):
    """Guide away from the output in which each picture token attends only to itself.

    output + strength (output - perturbed), in chosen layers, usually those in the middle of a
    model. 0 changes nothing. (PAG, Ahn et al. 2024)

    >>> PerturbedAttentionGuidance(3.0).guidance
    -3.0
    """

    strength: Strength = 3.0
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Let picture tokens attend only to themselves."""
        return (KeepOwnValues(),)


@register("smoothed_energy_guidance", "seg")
@value
class SmoothedEnergyGuidance(_Away):
    """Guide away from the output in which the queries of the picture are blurred.

    output + strength (output - blurred); `sigma` is in tokens, and infinity replaces all queries of
    the picture by their mean. 0 changes nothing. (SEG, Hong 2024)

    >>> SmoothedEnergyGuidance(sigma=10.0).edits()
    (BlurQueries(),)
    """

    strength: Strength = 3.0
    sigma: float = math.inf
    where: SiteChoice = SiteChoice()
    phase: str = "both"

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Blur the queries."""
        return (BlurQueries(self.sigma),)


@value
class AwayFromOtherText(PictureEdit):
    """Guide picture tokens away from what they read in the prompt of another branch.

    z + strength (z - z_other), limited to `limit` times the L1 norm of z, and mixed with z at
    `mix`. (NAG, equations 6 to 9)

    >>> AwayFromOtherText(4.0).branch
    'unconditional'
    """

    strength: Strength = 4.0
    limit: float = 2.5
    mix: float = 0.5
    branch: str = "unconditional"
    point: ClassVar[str] = "output"
    law: ClassVar[str] = "the same text in both branches changes nothing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0))
        for name, least, most in (("limit", 1.0, math.inf), ("mix", 0.0, 1.0)):
            x = getattr(self, name)
            if isinstance(x, bool) or not isinstance(x, int | float) or not least <= x <= most:
                fail(ValueRangeError, name, shape_of(x), f"{least:g} to {most:g}", "pass a number")

    def after(self, at: EditContext, result: Result) -> Result:
        """Attend to the other text, and guide away from it."""
        if is_neutral(self.strength, 0.0):
            return result
        call, names = at.call, at.forward.branches or ()
        if self.branch not in names:
            fail(
                CapabilityError, "batch", f"branches {names}" if names else "branches not told",
                f"a branch {self.branch!r}, whose text is led away from", "steer a pipeline that "
                "runs both in one batch, or run within regard.models.diffusers.branches(...)",
            )  # fmt: skip
        text = at.tokens_at("keys", "text")
        k, v = (
            _other_text(x, text, at.forward.rows(self.branch, call.b)) for x in (call.k, call.v)
        )
        z = result.out.float()
        other = run(call.replace(k=k, v=v)).out.float()
        away = z + at.factor(self.strength) * (z - other)
        old, new = (x.abs().sum((1, 3), keepdim=True) for x in (z, away))
        most = self.limit * old
        away = torch.where(new > most, away * most / new.clamp(min=1e-12), away)
        made = (z + self.mix * (away - z)).to(result.out)
        return result._replace(out=torch.where(self.changes(at)[..., None], made, result.out))


def _other_text(x: Tensor, text: slice, rows: slice) -> Tensor:
    """Return keys or values with the text of some rows in every block of as many rows."""
    made = x.clone()
    many = rows.stop - rows.start
    made[:, :, text] = x[rows][:, :, text].repeat(x.shape[0] // many, 1, 1, 1)
    return made


@register("normalized_attention_guidance", "nag")
@value
class NormalizedAttentionGuidance(DiffusionControl):
    """Guide what the picture reads in its prompt away from what it would read in the negative one.

    It needs no second output of the model, and limits norms (`limit`, `mix`). The negative
    prompt is that of the unconditional branch. 0 changes nothing. (NAG, Chen et al. 2025, whose
    scale is strength + 1)

    >>> NormalizedAttentionGuidance(4.0).edits()[0].strength
    4.0
    """

    strength: Strength = 4.0
    limit: float = 2.5
    mix: float = 0.5
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    kinds: ClassVar[tuple[str, ...]] = TEXT
    branch: ClassVar[str | None] = "conditional"
    high: ClassVar[float] = math.inf

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Guide away from the negative prompt."""
        return (AwayFromOtherText(self.strength, self.limit, self.mix),)
