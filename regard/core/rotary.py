"""Rotary positions: turn pairs of channels by angles that grow with the position.

`turned(q, i) . turned(k, j)` depends on `i - j` alone. A schedule says how fast each pair turns;
the rivals for longer contexts (interpolation, NTK, YaRN, Llama 3) are schedules and no more.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail
from regard.core.value import Value, value


@value
class Rotation(Value):
    """How fast each pair of channels turns: `base ** (-2 c / d)` for pair c of d channels.

    `factor` slows every pair alike (position interpolation). Subclasses slow some pairs more than
    others. `interleaved` pairs neighbors (0, 1), (2, 3), ... where the default pairs the halves.

    >>> Rotation(base=100.0).speeds(4)
    tensor([1.0000, 0.1000])
    """

    base: float = 10_000.0
    factor: float = 1.0
    interleaved: bool = False

    # What scores grow by, as some schedules ask.
    temperature: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        for name in ("base", "factor"):
            x = getattr(self, name)
            if not isinstance(x, int | float) or not x > 0:
                fail(ValueRangeError, name, x, "a number above 0", "leave it out for the default")

    def speeds(self, d: int) -> Tensor:
        """Return the angle that each of the d / 2 pairs turns by per token."""
        if d < 2 or d % 2:
            fail(ShapeError, "d", f"{d} channels", "an even number", "turn an even part of a head")
        return self.slowed(self.base ** (-torch.arange(0, d, 2, dtype=torch.float32) / d))

    def slowed(self, speeds: Tensor) -> Tensor:
        """Change the plain speeds [d / 2] as the schedule says."""
        return speeds / self.factor

    def angles(self, positions: Tensor, d: int) -> tuple[Tensor, Tensor]:
        """Return the cosine and sine [..., n, d / 2] for positions [..., n]."""
        speeds = self.speeds(d).to(positions.device)
        angles = positions[..., None].float() * speeds
        return angles.cos() * self.temperature, angles.sin() * self.temperature


@value
class SlowedByWavelength(Rotation):
    """Slow only pairs that do not turn often enough in training (Llama 3).

    Pairs with a wavelength below `original / high` keep their speed, those above `original / low`
    are slowed by `factor`, those between change over smoothly.

    >>> SlowedByWavelength(factor=8.0).speeds(128)[0].item()
    1.0
    """

    original: int = 8192
    low: float = 1.0
    high: float = 4.0

    def slowed(self, speeds: Tensor) -> Tensor:
        """Mix the plain and the slowed speeds by wavelength."""
        turns = self.original * speeds / (2 * math.pi)
        keep = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return speeds * (keep + (1 - keep) / self.factor)


@value
class SlowedBase(Rotation):
    """Raise the base so that the slowest pair is slowed by `factor` and the fastest not (NTK).

    >>> speeds = SlowedBase(factor=4.0).speeds(8) / Rotation().speeds(8)
    >>> [round(x, 3) for x in speeds.tolist()]
    [1.0, 0.63, 0.397, 0.25]
    """

    def slowed(self, speeds: Tensor) -> Tensor:
        """Slow pair c by factor to the power c / (pairs - 1)."""
        pairs = len(speeds)
        return speeds * self.factor ** (-torch.arange(pairs) / max(pairs - 1, 1))


@value
class Yarn(Rotation):
    """Slow pairs by how often they turn within `original` tokens, and sharpen scores (YaRN).

    >>> Yarn(factor=4.0).speeds(64)[0].item(), round(Yarn(factor=4.0).temperature, 4)
    (1.0, 1.1386)
    """

    original: int = 4096
    fast: float = 32.0
    slow: float = 1.0

    @property
    def temperature(self) -> float:  # type: ignore[override]
        """What queries and keys are each multiplied by."""
        return 1.0 if self.factor <= 1 else 0.1 * math.log(self.factor) + 1.0

    def slowed(self, speeds: Tensor) -> Tensor:
        """Ramp along the pairs from those that turn `fast` times to those that turn `slow`."""
        pairs = len(speeds)

        def pair(turns: float) -> float:
            return pairs * math.log(self.original / (turns * 2 * math.pi)) / math.log(self.base)

        first = max(math.floor(pair(self.fast)), 0)
        last = min(math.ceil(pair(self.slow)), 2 * pairs - 1)
        ramp = (torch.arange(pairs) - first) / max(last - first, 1e-3)
        slow = ramp.clamp(0, 1)
        return speeds * (slow / self.factor + 1 - slow)


def turned(x: Tensor, angles: tuple[Tensor, Tensor], interleaved: bool = False) -> Tensor:
    """Turn the first channels of x [b, h, n, d] by `angles`, two [n, r] or [b, n, r], 2 r <= d.

    >>> x, positions = torch.randn(1, 2, 5, 8), torch.arange(5)
    >>> y = turned(x, Rotation().angles(positions, 8))
    >>> torch.allclose(x.norm(dim=-1), y.norm(dim=-1), atol=1e-5)
    True
    """
    cos, sin = (a.to(x.dtype) for a in angles)
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    width = 2 * cos.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    if interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        part = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = part.chunk(2, dim=-1)
        part = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((part, rest), dim=-1) if rest.shape[-1] else part
