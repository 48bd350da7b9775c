"""Attention transition: decoded tokens attend more to the prompt tokens that gathered context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regard.controls.base import Control, checked
from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit
from regard.controls.key_edits import only_keys
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.steering import Steering
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.token_sets import FoundInCall, expand_to_heads
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.partial import wide
from regard.core.result import Result
from regard.core.value import value
from regard.models.attach import attach, hook_of
from regard.run.runner import run
from regard.run.survey import survey_call


@value
class Carriers(FoundInCall):
    """The `many` prompt tokens that the other queries of the prompt give the most weight.

    The mean is over heads, and over the queries that see a token; the first token is left out. In
    a prompt with no more than `many` tokens, it is all of them.

    >>> Carriers(8).many
    8
    """

    many: int

    def __post_init__(self) -> None:
        if isinstance(self.many, bool) or not isinstance(self.many, int) or self.many < 1:
            fail(ValueRangeError, "many", shape_of(self.many), "a whole number from 1", "pass 32")

    def find(self, at: EditContext) -> Tensor:
        """Survey the prompt once."""
        report = survey_call(at.call, ("received",))
        real = report.seen > 0
        score = (report.received / report.seen.clamp(min=1)).mean(1, keepdim=True)
        real = real.any(1, keepdim=True)
        if int(real.sum(-1).max()) <= self.many:
            return real
        place = expand_to_heads(at.key_positions, at)[:, :1]
        first = torch.where(real, place, torch.iinfo(torch.long).max).amin(-1, keepdim=True)
        score = score.masked_fill(~(real & (place > first)), -1.0)
        made = torch.zeros_like(score, dtype=torch.bool)
        top = score.topk(min(self.many, score.shape[-1]), -1).indices
        return made.scatter(-1, top, value=True) & (score >= 0)


@value
class MixCarriers(AttentionEdit):
    """Mix with attention to only the carriers: out + s (out of carriers - out), with s per head.

    `shares` is a strength, or a tensor [layers, heads] from 0 to 1.

    >>> MixCarriers(Carriers(8), 0.1).point
    'output'
    """

    keys: Carriers
    shares: Strength | Tensor
    point: ClassVar[str] = "output"
    law: ClassVar[str] = "linear in the shares; at 1 attention renormalized over the carriers"

    def __post_init__(self) -> None:
        x = self.shares
        if isinstance(x, Tensor) and x.dim() == 2:
            if not bool(((x >= 0) & (x <= 1)).all()):
                fail(ValueRangeError, "strength", "shares beyond", "0 to 1", "pass shares")
        else:
            object.__setattr__(self, "shares", strength_of(x, 0.0, 1.0))

    def after(self, at: EditContext, result: Result) -> Result:
        """Run the call on the carriers, and mix."""
        if not isinstance(self.shares, Tensor) and is_neutral(self.shares, 0.0):
            return result
        share = self._share(at)
        branch = run(only_keys(self.keys).before(at)).out
        old, new = (x.to(wide(x.dtype)) for x in (result.out, branch))
        mixed = torch.where(share == 0, old, old + share * (new - old))
        return result._replace(out=torch.where(at.limit[..., None], mixed, old).to(result.out))

    def _share(self, at: EditContext) -> Tensor:
        x, layer = self.shares, 0 if at.site is None or at.site.layer is None else at.site.layer
        if not isinstance(x, Tensor):
            return at.tensor(x)[..., None]
        if layer >= x.shape[0] or x.shape[1] != at.call.h:
            fail(
                ShapeError, "strength", shape_of(x), f"[layers, {at.call.h}], with layer {layer}",
                "give each layer of the model a row, and each head a number",
            )  # fmt: skip
        return x[layer].to(at.device, wide(at.call.q.dtype))[None, :, None, None]


@register("attention_transition")
@method(
    "attention_transition",
    call="from regard.controls.carried_context import AttentionTransition\n"
    "regard.steer(model, AttentionTransition(many=32, strength=0.1))",
)
@value
class AttentionTransition(Control):
    """Let decoded tokens attend more to the prompt tokens that gathered context from others.

    `many` of these carriers are chosen in each layer; the output of attention to only them is mixed
    in by `strength`, or by shares [layers, heads] as `learn_shares` finds them. 0 changes nothing.
    The paper gives no implementation; this one is a guess.
    (Attention transition, 2023)

    >>> AttentionTransition(32).edits()[0].point
    'output'
    """

    many: int = 32
    strength: Strength | Tensor = 0.1
    where: SiteChoice = SiteChoice()
    phase: str = "decoded"
    neutral: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", self._mix().shares)
        checked(self)

    @property
    def is_neutral(self) -> bool:
        """Return whether all shares are 0."""
        x = self.strength
        return bool((x == 0).all()) if isinstance(x, Tensor) else is_neutral(x, 0.0)

    def _mix(self) -> MixCarriers:
        return MixCarriers(Carriers(self.many), self.strength)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Mix attention to the carriers in."""
        return (self._mix(),)


def learn_shares(
    model: Any, examples: Callable[[], tuple[Tensor, Tensor]], *, many: int = 32, steps: int = 100,
    rate: float = 0.1, start: float = 0.02, where: Any = None,
) -> Tensor:  # fmt: skip
    """Learn the shares of carriers by layer and head, [layers, heads]; the model stays as it is.

    `examples()` draws a batch: contexts [b, n], and their continuations [b, m]. The loss is that
    of the continuations, for a model that returns logits.
    """
    sites = [x for x in hook_of(model)[1] if x.layer is not None]
    layers, heads = 1 + max(x.layer or 0 for x in sites), sites[0].heads or 1
    logit = torch.tensor(start).logit()
    weights = torch.full((layers, heads), float(logit), requires_grad=True)
    adam = torch.optim.Adam([weights], rate)
    for _ in range(steps):
        context, rest = examples()
        control = AttentionTransition(many, weights.sigmoid(), SiteChoice.of(where))
        stage = Steering(control, prompt=context, measure="none", must_move=False)
        with attach(model, stage, check=False):
            out = model(torch.cat((context, rest), 1))
        logits = getattr(out, "logits", out)[:, context.shape[1] - 1 : -1]
        loss = cross_entropy(logits.flatten(0, 1).float(), rest.flatten())
        (weights.grad,) = torch.autograd.grad(loss, (weights,))
        adam.step()
    return weights.detach().sigmoid()
