"""Attention as a layer, in three steps. Mechanisms override the ones they change.

| step | what it returns |
|---|---|
| `queries(x)`, `keys(context)` | q [b, h, n, d]; k [b, g, m, d] and v [b, g, m, e] |
| `look(call, input)` | the output of each head, [b, h, n, e] |
| `mix(seen, input)` | y [b, n, dim] |

Positions, padding, packed documents, memories and cross-attention are handled around these steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.autocast import autocast_alike
from regard.core.call import Call
from regard.core.errors import RuleError, fail, shape_of
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.score import Dot, Score
from regard.core.support import Causal, Documents, Everything, Padding, PerHead, Support
from regard.core.weigh import Softmax, Weigh
from regard.layers.arguments import need_divisor, need_share, need_size
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.positions import Position, position_named
from regard.layers.registry import register
from regard.memories.base import KeyMemory
from regard.memories.full import Full
from regard.memories.split import Split
from regard.run.api import attend


class Attention(Layer):
    """Multi-head attention, `kv_heads` of whose key heads are shared by groups of query heads.

    `rule()` is `support`, `score` and `weigh` as given, causal where asked, plus the score steps of
    `position` (a `Position` or the name of one). `qk_norm` builds a norm of the head size for
    queries and keys (`nn.RMSNorm`, say). `out_bias` is `bias` unless given.

    >>> layer = Attention(64, heads=8, kv_heads=2, causal=True, position="rotary")
    >>> layer(torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    can: ClassVar[Capabilities] = Capabilities(multihead_weights=True)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        context_dim: int | None = None,
        causal: bool = False,
        position: Position | str | None = None,
        support: Support | None = None,
        score: Score | None = None,
        weigh: Weigh | None = None,
        dropout: float = 0.0,
        bias: bool = False,
        out_bias: bool | None = None,
        qk_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("heads", heads)
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        need_size("kv_heads", self.kv_heads)
        need_divisor("kv_heads", self.kv_heads, "query heads", heads)
        if head_dim is None:
            need_divisor("heads", heads, "channels of dim (or give head_dim)", dim)
        self.head_dim = dim // heads if head_dim is None else head_dim
        need_size("head_dim", self.head_dim)
        self.value_dim = self.head_dim if value_dim is None else value_dim
        need_size("value_dim", self.value_dim)
        need_share("dropout", dropout)
        self.dropout = dropout
        if position is not None and self.crosses:
            fail(
                RuleError, "position", shape_of(position), "None for cross-attention",
                "positions in the context and in x are not comparable",
            )  # fmt: skip
        if isinstance(position, str):
            position = position_named(position, heads, self.head_dim, causal)
        self.position = Position() if position is None else position
        own = Everything() if support is None else support
        self._support = (Causal() if causal else Everything()) & own
        self._score, self._weigh = score or Dot(), weigh or Softmax()
        self._fixed: Rule | None = None
        self.to_out: nn.Linear
        self.make_projections(bias)
        if out_bias is not None and out_bias != bias:
            self.to_out = nn.Linear(self.to_out.in_features, dim, out_bias)
        if qk_norm is not None:
            self.norm_q, self.norm_k = qk_norm(self.head_dim), qk_norm(self.head_dim)
        self._normed = qk_norm is not None

    def make_projections(self, bias: bool) -> None:
        """Build the weights that `queries`, `keys` and `mix` read."""
        self.to_q = nn.Linear(self.dim, self.heads * self.head_dim, bias)
        self.to_k = nn.Linear(self.context_dim, self.kv_heads * self.head_dim, bias)
        self.to_v = nn.Linear(self.context_dim, self.kv_heads * self.value_dim, bias)
        self.to_out = nn.Linear(self.heads * self.value_dim, self.dim, bias)

    # The three steps, and the rule.

    def queries(self, x: Tensor) -> Tensor:
        """Build q [b, h, n, d]."""
        return split(self.to_q(x), self.heads)

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Build k [b, g, m, d] and v [b, g, m, e]."""
        return split(self.to_k(context), self.kv_heads), split(self.to_v(context), self.kv_heads)

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend: the output of each head, [b, h, n, e]."""
        return self.attend(call)

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Join the heads [b, h, n, e]: y [b, n, dim]."""
        mixed: Tensor = self.to_out(joined(seen))
        return mixed

    def rule(self) -> Rule:
        """Build the rule: override `support`, `score` or `weigh` to change it."""
        if self._fixed is None:
            made = Rule(self.support(), self.position.steps(self.score()), self.weigh())
            if made.tensors():  # parameters change between calls: build the rule each time
                return made
            self._fixed = made
        return self._fixed

    def support(self) -> Support:
        """Return which pairs may attend."""
        return self._support

    def score(self) -> Score:
        """Return the score, before the steps of `position` are added."""
        return self._score

    def weigh(self) -> Weigh:
        """Return how scores become weights."""
        return self._weigh

    # What runs around the steps.

    def takes_no_bias_of_position(self, why: str) -> None:
        """Raise if `position` adds to scores, for a layer whose keys are not all tokens."""
        if type(self.position).steps is not Position.steps:
            self.cannot(
                "position", f"{self.position}", f"bias its scores by position: {why}",
                "use rotary positions, or none",
            )  # fmt: skip

    def compute(self, input: LayerInput) -> Tensor:
        """Project, attend and mix."""
        if torch.compiler.is_compiling():
            from regard.layers.fixed_rules import rule_is_fixed  # loads the compiler

            if not input.plain or not rule_is_fixed(self):
                # A rule cannot be built inside compiled code (decision 0005).
                from regard.core.uncompiled import uncompiled

                y: Tensor = uncompiled(self.compute_eagerly, input)
                return y
        return self.compute_eagerly(input)

    def compute_eagerly(self, input: LayerInput) -> Tensor:
        """Project, attend and mix; runs outside compiled code where a rule must be built."""
        return self.mix(self.look(self.call(input), input), input)

    def call(self, input: LayerInput) -> Call:
        """Build the call of attention for an input."""
        q, read = self.read(input)
        rule = self.rule().shift(input.offset)
        support = rule.support
        if input.documents is not None:
            support = support & Documents(input.documents, input.context_documents)
        if input.padding is not None and input.memory is None:
            support = support & Padding(input.padding)
        if support is not rule.support:
            rule = rule.replace(support=support)
        dropout = self.dropout if self.training else 0.0
        return Call.of(q, read.k, read.v, rule, None, read.positions, dropout)

    def read(self, input: LayerInput) -> tuple[Tensor, Dense]:
        """Return the queries, and all keys that they may attend to, those of the memory first."""
        memory = input.memory
        if memory is not None and input.crosses and memory.seen:
            (q,) = autocast_alike(self.normed_queries(input))
            return q, memory.get("keys").read()
        k, v = self.keys(input.context)
        k = self.norm_k(k) if self._normed else k
        return self.positioned_and_kept(self.normed_queries(input), k, v, input)

    def positioned_and_kept(
        self, q: Tensor, k: Tensor, v: Tensor, input: LayerInput
    ) -> tuple[Tensor, Dense]:
        """Apply positions to q and k, and append the new keys to the memory's."""
        q = self.position.turn(q, input.positions)
        if not input.crosses:
            k = self.position.turn(k, input.positions)
        q, k, v = autocast_alike(q, k, v)
        if input.memory is None:
            return q, Dense(k, v, None)
        chosen = None if input.crosses else input.memory.keys
        make = self.key_memory if chosen is None else lambda: chosen(self.rule())
        kept: KeyMemory = input.memory.of_kind("keys", make)
        kept.extend(k, v, input.padding)
        if not input.crosses:
            # What this call's own first query may need stays until the next call.
            self.forget(kept, input.offset)
        return q, kept.read()

    def key_memory(self) -> KeyMemory:
        """Build the memory of keys: one for each head where each has its own support."""
        apart = isinstance(self.rule().support, PerHead)
        return Split.by_head(self.kv_heads) if apart else Full()

    def forget(self, kept: KeyMemory, now: int) -> None:
        """Drop keys that no query from `now` on can need."""
        support = self.rule().support
        if isinstance(kept, Split) and isinstance(support, PerHead):
            share = self.heads // self.kv_heads
            kept.forget_each([
                reduce(or_, (s.horizon(now) for s in support.supports[g : g + share]))
                for g in range(0, self.heads, share)
            ])  # fmt: skip
        else:
            kept.forget(support.horizon(now))

    def normed_queries(self, input: LayerInput) -> Tensor:
        """Build the queries, normalized if `qk_norm` was given."""
        q = self.queries(input.x)
        return self.norm_q(q) if self._normed else q

    def attend(self, call: Call) -> Tensor:
        """Run one call of attention; `regard.attach` hooks in here."""
        seen: Tensor = attend(
            call.q, call.k, call.v, call.rule,
            q_positions=call.q_positions, k_positions=call.k_positions, dropout=call.dropout,
        )  # fmt: skip
        return seen

    def describe(self) -> str:
        """Describe the layer in one line."""
        sizes = f"{self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, d={self.head_dim}"
        return f"{type(self).__name__}({sizes}{', causal' if self.causal else ''})"

    def extra_repr(self) -> str:
        """Describe the rule."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}, rule={self.rule()}"

    def __getstate__(self) -> dict[str, Any]:
        # A copy has other tensors, so it builds its own rule.
        return {**self.__dict__, "_fixed": None}


def split(x: Tensor, heads: int) -> Tensor:
    """Split channels into heads: [b, n, h d] to [b, h, n, d].

    >>> split(torch.zeros(2, 5, 12), 3).shape
    torch.Size([2, 3, 5, 4])
    """
    heads_first: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return heads_first


def joined(x: Tensor) -> Tensor:
    """Join heads again: [b, h, n, d] to [b, n, h d].

    >>> joined(torch.zeros(2, 3, 5, 4)).shape
    torch.Size([2, 5, 12])
    """
    return x.transpose(1, 2).flatten(2)


register("mha")(Attention)
