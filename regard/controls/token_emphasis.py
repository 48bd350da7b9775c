"""Emphasis of image tokens in two streams: local and salient ones."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.controls.base import Control, checked
from regard.controls.edit import AttentionEdit
from regard.controls.registry import register
from regard.controls.score_edits import RaiseScores
from regard.controls.site_choice import SiteChoice
from regard.controls.strength import Strength, strength_of
from regard.controls.text_tokens import read_sets
from regard.controls.token_sets import FromLastToken, TokenSet
from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.value import value


class Streams(NamedTuple):
    """Local and salient patches, bool [b, patches] each."""

    local: Tensor
    salient: Tensor


def streams(early: Tensor, late: Tensor, share: float = 0.25) -> Streams:
    """Choose patches by the weights of the class token on them, early and late in an encoder.

    `early` and `late` [b, heads, patches] or [b, patches] are summed over heads. Salient patches
    are upper outliers of the late weights (above Q3 + 1.5 times the interquartile range); local
    ones are the largest `share` of the early weights, without the salient.

    >>> early = torch.tensor([[4.0, 3, 2, 1, 0, 0, 0, 0]])
    >>> late = torch.tensor([[9.0, 1, 1, 1, 1, 1, 1, 1.1]])
    >>> [x.int().tolist() for x in streams(early, late)]
    [[[0, 1, 0, 0, 0, 0, 0, 0]], [[1, 0, 0, 0, 0, 0, 0, 1]]]
    """
    early, late = (x.sum(1) if x.dim() == 3 else x for x in (early, late))
    if early.dim() != 2 or early.shape != late.shape:
        fail(
            ShapeError, "early, late", f"{shape_of(early)} and {shape_of(late)}",
            "weights of one size, [b, heads, patches]", "read both in one encoder",
        )  # fmt: skip
    if not 0 < share <= 1:
        fail(ValueRangeError, "share", share, "above 0, up to 1", "pass share=0.25")
    low, high = (late.quantile(x, dim=1, keepdim=True) for x in (0.25, 0.75))
    salient = late > high + 1.5 * (high - low)
    many = max(1, int(share * early.shape[1]))
    local = torch.zeros_like(salient).scatter(1, early.topk(many, 1).indices, True)
    return Streams(local & ~salient, salient)


@register("token_emphasis")
@method(
    "dual_stream_token_emphasis",
    call="from regard.controls.token_emphasis import TokenEmphasis\n"
    "regard.steer(model, TokenEmphasis(local, salient), where=range(2, 32))",
)
@value
class TokenEmphasis(Control):
    """Raise the scores s that the newest token gives two sets of image tokens, to s + a |s|.

    a is `strength` for local tokens, and `salient_strength` times as much for salient ones
    (`streams` chooses both by the weights of a vision encoder). 0 changes
    nothing. (Gong et al. 2025)

    >>> TokenEmphasis([3, 4], [5]).edits()[1].strength
    0.3
    """

    which: TokenSet
    salient: TokenSet | None = None
    strength: Strength = 0.7
    salient_strength: float = 3 / 7
    where: SiteChoice = SiteChoice()
    phase: str = "both"
    neutral: ClassVar[float | None] = 0.0
    models: ClassVar[str] = "language"

    def __post_init__(self) -> None:
        read_sets(self, "which", optional=("salient",))
        object.__setattr__(self, "strength", strength_of(self.strength, 0.0))
        checked(self)

    def edits(self) -> tuple[AttentionEdit, ...]:
        """Raise the scores of both sets."""
        newest = FromLastToken()
        made = [RaiseScores(self.which, self.strength, newest)]
        if self.salient is not None:
            made.append(
                RaiseScores(self.salient, scaled(self.strength, self.salient_strength), newest)
            )
        return tuple(made)


def scaled(strength: Strength, factor: float) -> Strength:
    """Multiply a strength.

    >>> scaled(0.7, 3 / 7)
    0.3
    """
    if isinstance(strength, float | int):
        return round(strength * factor, 12)
    return strength.replace(numbers=tuple(round(x * factor, 12) for x in strength.numbers))
