"""VAR: move the weight of visual sinks to the other image tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.base import Control, checked
from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit
from regard.controls.image_tokens import ImageTokens
from regard.controls.registry import register
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, is_neutral, strength_of
from regard.controls.token_sets import FoundInCall, TokenSet
from regard.controls.weight_edits import masses, move_mass
from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.method import method
from regard.core.value import value
from regard.models.residual import layers_of
from regard.models.site import Sites
from regard.run.executor import Answer, No, Yes


@value
class MassiveTokens(FoundInCall):
    """Tokens whose RMS-normalized hidden state is above `above` in any of some channels.

    `channels` are those in which the language model has massive activations for any input;
    (1415, 2533) in LLaMA2-7B. They are found in the prompt, at each layer.

    >>> MassiveTokens((1415, 2533)).above
    20.0
    """

    channels: tuple[int, ...]
    above: float = 20.0

    def __post_init__(self) -> None:
        many = tuple(self.channels)
        if not many or any(isinstance(x, bool) or not isinstance(x, int) or x < 0 for x in many):
            fail(
                ValueRangeError, "channels", str(self.channels), "channels of the hidden state",
                "find them: regard.controls.visual_sinks.massive_channels(hidden)",
            )  # fmt: skip
        object.__setattr__(self, "channels", many)

    def find(self, at: EditContext) -> Tensor:
        """Compare the channels of the tokens entering the block."""
        hidden = at.hidden
        if hidden is None:
            fail(
                CapabilityError, "model", "no hidden states", "a decoder of blocks",
                "take a decoder of transformers",
            )  # fmt: skip
        hidden = hidden[:, : at.call.n]
        if max(self.channels) >= hidden.shape[-1]:
            fail(
                ValueRangeError, "channels", max(self.channels),
                f"channels 0 to {hidden.shape[-1] - 1}", "count the channels from 0",
            )  # fmt: skip
        sizes = normalized(hidden)[..., list(self.channels)].abs().amax(-1)  # [b, n]
        made = torch.zeros(sizes.shape[0], 1, at.call.m, dtype=torch.bool, device=at.device)
        made[:, 0, : sizes.shape[1]] = sizes > self.above
        return made


def normalized(hidden: Tensor) -> Tensor:
    """Divide hidden states by their root mean square, without a gain.

    >>> normalized(torch.tensor([3.0, 4.0])).square().mean().item()
    1.0
    """
    x = hidden.float()
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def massive_channels(hidden: Tensor, many: int = 2) -> tuple[int, ...]:
    """Return the channels in which normalized hidden states [b, n, d] are largest.

    >>> massive_channels(torch.tensor([[[0.1, 9.0, 0.1, -7.0]]]))
    (1, 3)
    """
    sizes = normalized(hidden).abs().flatten(0, -2).amax(0)
    return tuple(sorted(sizes.topk(many).indices.tolist()))


@value
class MoveFromSinks(AttentionEdit):
    """Move a share of the weight of massive tokens to the other image tokens.

    Only for queries after the image, in heads that attend to it: with at least `least` of their
    weight on it, and at most `most` of that on sinks.

    >>> MoveFromSinks((3,)).sets()[0]
    MassiveTokens((3,))
    """

    channels: tuple[int, ...]
    strength: Strength = 0.4
    above: float = 20.0
    least: float = 0.2
    most: float = 0.5
    point: ClassVar[str] = "weights"
    law: ClassVar[str] = (
        "strength times the mass of sinks goes to other image tokens in proportion; rows sum to "
        "one; heads that do not attend to the image are unchanged"
    )

    def sets(self) -> tuple[TokenSet, ...]:
        """Return the sinks, and the other tokens of the image."""
        sinks = MassiveTokens(self.channels, self.above)
        return sinks, ImageTokens() & ~sinks

    def before(self, at: EditContext) -> Call:
        """Find the heads that attend to the image, and move their weight."""
        if is_neutral(self.strength, 0.0):
            return at.call
        sinks, rest = (x.mask(at) for x in self.sets())
        image = ImageTokens().mask(at)
        visual = sinks & image
        if not bool(visual.any()):
            return at.call
        drawn, shown = masses(at.call, [visual, rest])
        looks = drawn + shown
        centric = (looks >= self.least) & (drawn <= self.most * looks)
        # Only text after the image: what comes before has not seen it.
        last = torch.where(image, at.key_positions, -1).amax(-1)  # [b, h or 1]
        behind = at.query_positions[:, None] > last[..., None]
        if at.call.n == 1:
            behind = torch.ones_like(behind)
        number = at.number(self.strength)
        return move_mass(at.call, sinks, rest, number, centric & behind & at.limit)


@register("visual_sinks", "var")
@method(
    "var_visual_sink",
    call="from regard.controls.visual_sinks import VisualSinks\n"
    "regard.steer(model, VisualSinks((1415, 2533)), where=range(2, 31))",
)
@value
class VisualSinks(Control):
    """Give a share `strength` of the weight of sinks to the other image tokens; 0 changes nothing.

    Sinks are tokens with massive activations in `channels`. It acts in heads that attend to the
    image (at least `least` of their weight, at most `most` of that on sinks), for text after the
    image. The paper leaves out the first two layers and the last: pass the others in `where`.
    (VAR, Kang et al. 2025)

    >>> VisualSinks(channels=(7,)).edits()[0].point
    'weights'
    """

    channels: tuple[int, ...]
    strength: Strength = 0.4
    above: float = 20.0
    least: float = 0.2
    most: float = 0.5
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    neutral: ClassVar[float | None] = 0.0
    needs_hidden: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", MassiveTokens(self.channels, self.above).channels)
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0, 1.0))
        checked(self)

    def can(self, model: Any, sites: Sites) -> Answer:
        """Accept models whose blocks are found."""
        try:
            layers_of(model, sites)
        except CapabilityError:
            return No("whose blocks are not found")
        return Yes()

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Move the weight of sinks."""
        return (MoveFromSinks(self.channels, self.strength, self.above, self.least, self.most),)
