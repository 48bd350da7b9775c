"""Tokens that vote earlier ones out of sight (selective attention)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.call import Call
from regard.core.method import method
from regard.core.score import Score
from regard.core.score.dense import DenseBias
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register
from regard.run.reference import score_matrix


@register("selective_attention")
@method(
    "selective_attention",
    call='import regard\nlayer = regard.layer("selective_attention", 512, heads=8)',
)
class SelectiveAttention(Attention):
    """The first head's positive scores are votes to mask a key for all later queries.

    `s'_ij = s_ij - sum_{k<i} relu(s_kj of head 0)`, no vote falling on a token itself or on the
    first one. A decoder keeps one number for each key beside it; keys with many votes can be
    dropped for good. No parameter is added.

    >>> SelectiveAttention(32, heads=4)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, left_padding=False, documents=False,
        multihead_weights=True,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int, *, causal: bool = True, **settings: Any) -> None:
        self.decides(settings, "support")
        super().__init__(dim, heads, causal=causal, **settings)

    def votes(self, call: Call) -> Tensor:
        """Count what each query casts against each key: [b, n, m]."""
        score = call.rule.score
        first = Score(score.match, tuple(step.take_heads([0]) for step in score.steps))
        scores, allowed = score_matrix(
            call.replace(q=call.q[:, :1], k=call.k[:, :1], v=call.v[:, :1],
                         rule=call.rule.replace(score=first))
        )  # fmt: skip
        at = call.at()
        other = (at.j < at.i) & (at.j > 0)
        return torch.where(allowed & other, scores.relu(), 0.0)[:, 0].to(call.q.dtype)

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Take votes off the scores of later queries."""
        cast = self.votes(call)
        before = cast.cumsum(1) - cast
        memory = input.memory
        if memory is not None:
            kept = memory.get("votes")
            if kept is not None:
                before = before + F.pad(kept, (0, call.m - kept.shape[1]))[:, None]
            memory.keep("votes", before[:, -1] + cast[:, -1])
        score = call.rule.score + DenseBias(-before[:, None])
        return super().look(call.replace(rule=call.rule.replace(score=score)), input)
