"""Tokens that mask earlier tokens for all later ones (selective attention)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.call import Call
from regard.core.method import method
from regard.core.score import Score
from regard.core.score.dense import DenseBias
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register
from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.memories.layer import LayerMemory
from regard.run.reference import score_matrix


@register("selective_attention")
@method(
    "selective_attention",
    call='import regard\nlayer = regard.layer("selective_attention", 512, heads=8)',
)
class SelectiveAttention(Attention):
    """The first head's positive scores are votes to mask a key for all later queries.

    `s'_ij = s_ij - sum_{k<i} relu(s_kj of head 0)`, with no vote for a token itself or for the
    first one. A decoder keeps one number for each key, and evicts the keys with the most votes
    once it has more than `keep` of them (None keeps all). No parameters are added.

    >>> layer = SelectiveAttention(32, heads=4, keep=3)
    >>> memory = layer.memory()
    >>> layer(torch.randn(1, 5, 32), memory=memory).shape, memory.get("keys").width
    (torch.Size([1, 5, 32]), 3)
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, left_padding=False, documents=False,
        multihead_weights=True,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, keep: int | None = None, causal: bool = True,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "support")
        if keep is not None:
            need_size("keep", keep)
        super().__init__(dim, heads, causal=causal, **settings)
        self.keep = keep

    def key_memory(self) -> KeyMemory:
        """Build the memory of keys: one that can evict, where `keep` is set."""
        return super().key_memory() if self.keep is None else Kept()

    def votes(self, call: Call) -> Tensor:
        """Return the votes of each query against each key: [b, n, m]."""
        score, places = call.rule.score, call.k_positions
        first = Score(score.match, tuple(step.take_heads([0]) for step in score.steps))
        if places is not None and places.dim() == 3:  # all heads keep the same keys
            places = places[:, :1]
        call = call.replace(
            q=call.q[:, :1], k=call.k[:, :1], v=call.v[:, :1], k_positions=places,
            rule=call.rule.replace(score=first),
        )  # fmt: skip
        scores, allowed = score_matrix(call)
        at = call.at()
        other = (at.j < at.i) & (at.j > 0)
        return torch.where(allowed & other, scores.relu(), 0.0)[:, 0].to(call.q.dtype)

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Subtract votes from the scores of later queries."""
        cast = self.votes(call)
        before = cast.cumsum(1) - cast
        memory = input.memory
        if memory is not None:
            kept = memory.get("votes")
            if kept is not None:
                before = before + F.pad(kept, (0, call.m - kept.shape[1]))[:, None]
            memory.keep("votes", before[:, -1] + cast[:, -1])
        score = call.rule.score + DenseBias(-before[:, None])
        seen = super().look(call.replace(rule=call.rule.replace(score=score)), input)
        if memory is not None and self.keep is not None and call.m > self.keep:
            self.drop(memory, self.keep)
        return seen

    def drop(self, memory: LayerMemory, keep: int) -> None:
        """Keep the keys with the fewest votes, the earlier of ties; the first stays."""
        votes, kept = memory.get("votes"), memory.get("keys")
        # The first token has no votes and is the earliest: it is always kept.
        slots = votes.argsort(dim=1, stable=True)[:, :keep].sort(1).values
        kept.choose(slots[:, None].expand(-1, self.kv_heads, -1))
        memory.keep("votes", votes.gather(1, slots))
