"""A single head with almost no projections, over a long memory of states (SHA-RNN)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.method import method
from regard.core.support import Window
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("single_head")
class SingleHead(Attention):
    """One head whose keys and values are the tokens, scaled channel by channel (SHA).

    `q = sigmoid(a) * norm(x W)`, `k = sigmoid(b) * x`, `v = g * x` with g a gated map of a
    learned vector; there are no other parameters. Tokens are normalized first. Each query attends
    to the last `span` tokens.

    >>> SingleHead(32, span=8, causal=True)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(bidirectional=False, cross=False)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32}

    def __init__(self, dim: int, *, span: int = 5000, causal: bool = True, **settings: Any) -> None:
        self.decides(settings, "support", "kv_heads", "head_dim", "value_dim", "out_bias")
        need_size("span", span)
        super().__init__(dim, 1, causal=causal, support=Window(span), **settings)

    def make_projections(self, bias: bool) -> None:
        """Build the query projection and the scales."""
        self.to_q = nn.Linear(self.dim, self.dim, bias)
        self.norm_of_query, self.norm_of_tokens = nn.LayerNorm(self.dim), nn.LayerNorm(self.dim)
        self.scales = nn.Parameter(torch.zeros(3, self.dim))
        self.to_gate = nn.Linear(self.dim, 2 * self.dim)

    def gate(self) -> Tensor:
        """Compute the scale of values; it is constant after training."""
        forget, change = self.to_gate(self.scales[2].sigmoid()).chunk(2)
        gate: Tensor = forget.sigmoid() * change.tanh()
        return gate

    def queries(self, x: Tensor) -> Tensor:
        """Project and scale."""
        q: Tensor = self.scales[0].sigmoid() * self.norm_of_query(self.to_q(x))
        return q[:, None]

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the tokens to keys and values."""
        tokens = self.norm_of_tokens(context)[:, None]
        return self.scales[1].sigmoid() * tokens, self.gate() * tokens

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Return the output of the one head."""
        return seen[:, 0]


class Boom(nn.Module):
    """A feed-forward layer that splits its wide inside into pieces and sums them: no second matrix.

    >>> Boom(8)(torch.randn(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, dim: int, pieces: int = 4) -> None:
        super().__init__()
        need_size("pieces", pieces)
        self.to_wide, self.pieces = nn.Linear(dim, pieces * dim), pieces

    def forward(self, x: Tensor) -> Tensor:
        """Project up, and sum the pieces."""
        wide: Tensor = F.gelu(self.to_wide(x)).unflatten(-1, (self.pieces, -1))
        return wide.sum(-2)


@register("sha_rnn")
@method("sha_rnn", call='import regard\nlayer = regard.layer("sha_rnn", 512, span=5000)')
class SingleHeadedRnn(Layer):
    """An LSTM, one head of attention over its states, and a boom layer (a block of SHA-RNN).

    `h = lstm(norm(x))`, `h = norm(h) + attention(h)`, `y = norm(h) + boom(norm(h))`; it needs no
    block around it. `attends=False` leaves the head out, as in most blocks of the model.

    >>> SingleHeadedRnn(32)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, left_padding=False, documents=False, vmap=False
    )
    tiny: ClassVar[dict[str, Any]] = {"dim": 32}

    def __init__(
        self, dim: int, *, span: int = 5000, attends: bool = True, causal: bool = True,
        context_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.head = SingleHead(dim, span=span) if attends else None
        self.boom = Boom(dim)

    def compute(self, input: LayerInput) -> Tensor:
        """Run the LSTM, attend, and apply the boom layer."""
        memory = input.memory
        kept = None if memory is None else memory.get("lstm")
        # torch keeps its states [layers, b, dim]; ours begin with the batch.
        before = None if kept is None else tuple(t.transpose(0, 1).contiguous() for t in kept)
        h, after = self.lstm(self.norms[0](input.x), before)
        if memory is not None:
            memory.keep("lstm", tuple(t.transpose(0, 1) for t in after))
        if self.head is not None:
            h = self.norms[1](h) + self.head(h, **input.for_part("head", self.head))
        h = self.norms[2](h)
        y: Tensor = h + self.boom(h)
        return y
