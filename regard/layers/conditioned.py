"""Pool states by scores that are conditioned on external knowledge (attentional conditioning)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.method import method
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.support import Everything, Padding
from regard.layers.arguments import need_size
from regard.run.api import attend


class ConditionedPooling(nn.Module):
    """Average states h [b, n, d] by scores of f(h, c), with c [b, n, d_c] from a lexicon.

    `y = sum_i softmax_i(v tanh(f(h_i, c_i))) h_i`: c conditions the scores, not the averaged
    states. Subclasses define f; here it is h itself.
    """

    def __init__(self, dim: int, knowledge: int) -> None:
        super().__init__()
        need_size("dim", dim)
        need_size("knowledge", knowledge)
        self.dim = dim
        self.score = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.make(dim, knowledge)

    def make(self, dim: int, knowledge: int) -> None:
        """Build the parameters that `condition` reads."""

    def condition(self, h: Tensor, c: Tensor) -> Tensor:
        """Return f(h, c), [b, n, d]."""
        return h

    def forward(self, h: Tensor, c: Tensor, padding: Tensor | None = None) -> Tensor:
        """Pool states: [b, n, d] to [b, d]; `padding` [b, n] is true at real words."""
        k = torch.tanh(self.condition(h, c))[:, None]
        q = self.score.to(h.dtype).expand(len(h), 1, 1, -1)
        support = Everything() if padding is None else Padding(padding)
        return attend(q, k, h[:, None], Rule(support, Dot(1.0)))[:, 0, 0]


@method(
    "attentional_conditioning",
    call="import regard\nfrom regard.layers.conditioned import GatedPooling\n"
    "pool = GatedPooling(256, knowledge=12)",
)
class GatedPooling(ConditionedPooling):
    """Knowledge gates features: `f = sigmoid(W c + b) * h`, gates open at initialization.

    >>> GatedPooling(8, knowledge=3)(torch.randn(2, 5, 8), torch.randn(2, 5, 3)).shape
    torch.Size([2, 8])
    """

    def make(self, dim: int, knowledge: int) -> None:
        """Build the gate."""
        self.to_gate = nn.Linear(knowledge, dim)
        nn.init.constant_(self.to_gate.bias, 3.0)

    def condition(self, h: Tensor, c: Tensor) -> Tensor:
        """Gate the states."""
        gated: Tensor = self.to_gate(c).sigmoid() * h
        return gated


class AffinePooling(ConditionedPooling):
    """Knowledge scales and shifts: `f = gamma(c) * h + beta(c)`, h itself at initialization.

    >>> AffinePooling(8, knowledge=3)(torch.randn(2, 5, 8), torch.randn(2, 5, 3)).shape
    torch.Size([2, 8])
    """

    def make(self, dim: int, knowledge: int) -> None:
        """Build scale and shift."""
        self.to_scale, self.to_shift = nn.Linear(knowledge, dim), nn.Linear(knowledge, dim)
        for map_, start in ((self.to_scale, 1.0), (self.to_shift, 0.0)):
            nn.init.zeros_(map_.weight)
            nn.init.constant_(map_.bias, start)

    def condition(self, h: Tensor, c: Tensor) -> Tensor:
        """Scale and shift the states."""
        moved: Tensor = self.to_scale(c) * h + self.to_shift(c)
        return moved


class JoinedPooling(ConditionedPooling):
    """Knowledge is concatenated with the state: `f = tanh(W [h; c] + b)`.

    >>> JoinedPooling(8, knowledge=3)(torch.randn(2, 5, 8), torch.randn(2, 5, 3)).shape
    torch.Size([2, 8])
    """

    def make(self, dim: int, knowledge: int) -> None:
        """Build the projection of both."""
        self.to_both = nn.Linear(dim + knowledge, dim)

    def condition(self, h: Tensor, c: Tensor) -> Tensor:
        """Project both together."""
        return torch.tanh(self.to_both(torch.cat((h, c), -1)))
