"""Single-head attention between moving averages, in gates (Mega)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.keys import Dense
from regard.core.method import method
from regard.core.score import Dot
from regard.core.support import Blocks
from regard.core.weigh import Laplace
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.averaging import DampedAverage
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.positions import Position, Relative
from regard.layers.registry import register


class TwoScalings(nn.Module):
    """Queries and keys as two affine maps of one projection (the gated attention unit).

    >>> q, k = TwoScalings(8, 4)(torch.randn(2, 5, 8))
    >>> q.shape, k.shape
    (torch.Size([2, 1, 5, 4]), torch.Size([2, 1, 5, 4]))
    """

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.to_shared = nn.Linear(dim, size)
        self.scales = nn.Parameter(torch.ones(2, size) + 0.02 * torch.randn(2, 1))
        self.shifts = nn.Parameter(torch.zeros(2, size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Build q and k [b, 1, n, d] of x [b, n, dim]."""
        shared = F.silu(self.to_shared(x))[:, None]
        q, k = (shared * s + t for s, t in zip(self.scales, self.shifts, strict=True))
        return q, k


@register("mega")
@method("mega", call='import regard\nlayer = regard.layer("mega", 512, causal=True)')
class MovingAverageGated(Attention):
    """One head attends between averages of the past, and gates mix it with the input (Mega).

    `x' = average(x)`; queries and keys are two scalings of one map of x', values a map of x;
    `y = p h + (1 - p) x` with `h = silu(x' W + (g * o) U)` and gates g and p of x'.

    >>> MovingAverageGated(32, causal=True)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(cross=False)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "head_dim": 8, "value_dim": 24, "rates": 4}

    def __init__(
        self, dim: int, *, head_dim: int | None = None, value_dim: int | None = None,
        rates: int = 16, reach: int = 128, position: Position | str | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "bias")
        head_dim = max(dim // 4, 1) if head_dim is None else head_dim
        value_dim = 2 * dim if value_dim is None else value_dim
        position = Relative(1, reach) if position is None else position
        super().__init__(
            dim, 1, head_dim=head_dim, value_dim=value_dim, position=position, **settings
        )
        self.average = DampedAverage(dim, size=rates, causal=self.causal)

    def make_projections(self, bias: bool) -> None:
        """Build one projection for queries and keys, and the gates."""
        self.scalings = TwoScalings(self.dim, self.head_dim)
        self.to_v = nn.Linear(self.dim, self.value_dim)
        self.to_reset = nn.Linear(self.dim, self.value_dim)
        self.to_update = nn.Linear(self.dim, self.dim)
        self.to_new = nn.Linear(self.dim, self.dim)
        self.to_out = nn.Linear(self.value_dim, self.dim, bias=False)

    def read(self, input: LayerInput) -> tuple[Tensor, Dense]:
        """Average, then build queries and keys from the average and values from the tokens."""
        input.between["average"] = averaged = self.average(input.x, input)
        q, k = self.scalings(averaged)
        q = self.tempered(q, input)
        return self.positioned_and_kept(q, k, F.silu(self.to_v(input.x))[:, None], input)

    def tempered(self, q: Tensor, input: LayerInput) -> Tensor:
        """Scale the queries [b, 1, n, d]; softmax needs none, as its score has a scale."""
        return q

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Apply the reset gate to the output, and the update gate to the tokens."""
        averaged = input.between.pop("average")
        reset = F.silu(self.to_reset(averaged))
        new = F.silu(self.to_new(averaged) + self.to_out(reset * seen[:, 0]))
        update = self.to_update(averaged).sigmoid()
        made: Tensor = input.x + update * (new - input.x)
        return made


@register("mega_laplace")
class LaplaceMovingAverageGated(MovingAverageGated):
    """Mega that weighs each key alone, by `Laplace` of the score over the number of visible keys.

    `w_ij = (1 + erf((s_ij - sqrt(1/2)) / (deviation sqrt 2))) / 2` with `s_ij = q_i k_j / m_i + b`,
    m_i the number of keys that query i may attend to; rows are not divided by their sums.

    >>> LaplaceMovingAverageGated(32, causal=True)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(cross=False, left_padding=False, documents=False)

    def __init__(self, dim: int, **settings: Any) -> None:
        self.decides(settings, "weigh", "score", "support")
        super().__init__(dim, weigh=Laplace(), score=Dot(1.0), **settings)

    def tempered(self, q: Tensor, input: LayerInput) -> Tensor:
        """Divide by the number of visible keys."""
        if self.causal:
            seen = torch.arange(q.shape[2], device=q.device) + input.offset + 1
        elif input.padding is not None:
            seen = input.padding.sum(1)[:, None, None].clamp(min=1)
        else:
            return q / q.shape[2]
        return q / seen[..., None].to(q.dtype)


@register("mega_chunk")
class ChunkedMovingAverageGated(MovingAverageGated):
    """Mega whose attention stays inside chunks; averages run over the whole sequence (Mega-chunk).

    >>> ChunkedMovingAverageGated(32, chunk=4, causal=True)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        cross=False, left_padding=False, documents=False, linear=True, constant_memory=True
    )
    tiny: ClassVar[dict[str, Any]] = {**MovingAverageGated.tiny, "chunk": 4}

    def __init__(self, dim: int, *, chunk: int = 128, **settings: Any) -> None:
        need_size("chunk", chunk)
        super().__init__(dim, **settings)
        self._support = self._support & Blocks(chunk)
