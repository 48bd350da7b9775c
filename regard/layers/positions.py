"""Position encodings that any attention layer takes.

They rotate queries and keys (`turn`), add steps to the score (`steps`), or both. Absolute
positions, which are added to the tokens themselves, belong to a model: `Sinusoidal`, `Learned`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from regard.core.errors import RuleError, fail
from regard.core.rotary import Rotation, turned
from regard.core.score import Alibi as AlibiStep
from regard.core.score import Cope as CopeStep
from regard.core.score import RelativeBias, Score, ShawBias, T5Bias
from regard.layers.arguments import need_size


class Position(nn.Module):
    """No position: the base of position encodings.

    >>> Position()
    Position()
    """

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate queries or keys [b, h, n, d] at `positions` [n] or [b, n]."""
        return x

    def steps(self, score: Score) -> Score:
        """Add the steps that depend on both positions to the score."""
        return score


class Rotary(Position):
    """Rotate queries and keys (RoPE); `channels` rotates only the first ones.

    >>> x = torch.randn(1, 2, 3, 8)
    >>> Rotary(base=500.0).turn(x, torch.arange(3)).shape
    torch.Size([1, 2, 3, 8])
    """

    def __init__(
        self, rotation: Rotation | None = None, *, base: float = 10_000.0,
        channels: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rotation = Rotation(base=base) if rotation is None else rotation
        self.channels = channels

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate each pair of channels by its frequency times the position."""
        d = x.shape[-1] if self.channels is None else self.channels
        return turned(x, self.rotation.angles(positions, d), self.rotation.interleaved)

    def extra_repr(self) -> str:
        """Describe the schedule."""
        return f"{self.rotation}"


class Alibi(Position):
    """Lower scores in proportion to distance, each head at its own slope.

    >>> Alibi(4).slopes
    tensor([0.2500, 0.0625, 0.0156, 0.0039])
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", AlibiStep.for_heads(heads).slopes, persistent=False)

    def steps(self, score: Score) -> Score:
        """Add the slopes."""
        return score + AlibiStep(self.slopes)


class T5(Position):
    """Learn a bias for each head and each bucket of distances, buckets wider with distance."""

    def __init__(
        self, heads: int, *, buckets: int = 32, furthest: int = 128, bidirectional: bool = False
    ) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(heads, buckets))
        self.furthest, self.bidirectional = furthest, bidirectional

    def steps(self, score: Score) -> Score:
        """Add the table."""
        return score + T5Bias(
            self.table, max_distance=self.furthest, bidirectional=self.bidirectional
        )


class Relative(Position):
    """Learn a bias for each head and each distance up to `reach`; further ones share the last."""

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        need_size("reach", reach)
        self.table = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def steps(self, score: Score) -> Score:
        """Add the table."""
        return score + RelativeBias(self.table)


class Shaw(Position):
    """Learn a vector for each distance, dotted with the query (Shaw; Music Transformer).

    The score gains `q_i . e[j - i]`, distances beyond `reach` sharing the last vector. One table
    [2 reach + 1, d] serves all heads, or each head has its own with `heads`.
    """

    def __init__(self, head_dim: int, reach: int, *, heads: int = 1) -> None:
        super().__init__()
        need_size("reach", reach)
        self.table = nn.Parameter(torch.randn(heads, 2 * reach + 1, head_dim) * head_dim**-0.5)

    def steps(self, score: Score) -> Score:
        """Add the products with the table, scaled as the score is."""
        return score + ShawBias(self.table)


class Cope(Position):
    """Contextual positions: distance counts the tokens that the query gates (CoPE)."""

    def __init__(self, head_dim: int, furthest: int) -> None:
        super().__init__()
        need_size("furthest", furthest)
        self.table = nn.Parameter(torch.randn(furthest + 1, head_dim) * head_dim**-0.5)

    def steps(self, score: Score) -> Score:
        """Add the contextual positions, scaled as the score is."""
        return score + CopeStep(self.table[None] * self.table.shape[-1] ** -0.5)


class Sinusoidal(nn.Module):
    """Absolute positions as sines and cosines, to be added to tokens: [n] to [n, dim].

    >>> Sinusoidal(4)(torch.arange(2))[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if dim % 2:
            fail(RuleError, "dim", dim, "an even number of channels", "add a channel")
        self.dim, self.base = dim, base

    def forward(self, positions: Tensor) -> Tensor:
        """Return [..., dim] for positions [...]."""
        pair = torch.arange(0, self.dim, 2, device=positions.device, dtype=torch.float32)
        angles = positions[..., None].float() * torch.exp(-math.log(self.base) / self.dim * pair)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class Learned(nn.Embedding):
    """Absolute positions as a learned table, to be added to tokens: [n] to [n, dim].

    >>> Learned(8, longest=16)(torch.arange(3)).shape
    torch.Size([3, 8])
    """

    def __init__(self, dim: int, longest: int) -> None:
        super().__init__(longest, dim)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """Return [..., dim] for positions [...] below `longest`."""
        if positions.numel() and int(positions.max()) >= self.num_embeddings:
            fail(
                RuleError, "positions", int(positions.max()), f"below {self.num_embeddings}",
                "make the table longer, or use sinusoidal positions",
            )  # fmt: skip
        return super().forward(positions)


def position_named(name: str, heads: int, head_dim: int, causal: bool) -> Position:
    """Build a position encoding by name, with its usual settings.

    >>> position_named("rotary", 4, 8, causal=True)
    Rotary(Rotation())
    """
    makers: dict[str, Callable[[], Position]] = {
        "none": Position,
        "rotary": Rotary,
        "alibi": lambda: Alibi(heads),
        "t5": lambda: T5(heads, bidirectional=not causal),
        "relative": lambda: Relative(heads, 128),
        "shaw": lambda: Shaw(head_dim, 128),
        "cope": lambda: Cope(head_dim, 64),
    }
    if name not in makers:
        fail(
            RuleError, "position", repr(name), f"one of {sorted(makers)}, or a Position",
            "pass regard.layers.Rotary(...), say",
        )  # fmt: skip
    return makers[name]()
