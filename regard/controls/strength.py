"""Strengths: one number, or one for each row of the batch, or for each step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.partial import wide
from regard.core.value import Value, value


def _numbers(name: str, x: object) -> tuple[float, ...]:
    many = tuple(x.tolist()) if isinstance(x, Tensor) and x.dim() == 1 else x
    if isinstance(many, list):
        many = tuple(many)
    good = isinstance(many, tuple) and many and all(map(_is_number, many))
    if not good:
        fail(
            ValueRangeError, name, shape_of(x), "one or more finite numbers", "pass (0.5, 1.0), say"
        )
    assert isinstance(many, tuple)
    return tuple(float(one) for one in many)


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


@value
class PerRow(Value):
    """One strength for each row of the batch; beams of a row share it.

    >>> PerRow((0.0, 1.0)).numbers
    (0.0, 1.0)
    """

    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", _numbers("numbers", self.numbers))


@value
class PerStep(Value):
    """One strength for each step (the prompt, then each decoded token; or each of denoising).

    The last one applies to all later steps. Without a cache, each query has the strength of its
    token.

    >>> PerStep((1.0, 0.5)).at(7)
    0.5
    """

    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", _numbers("numbers", self.numbers))

    def at(self, step: int) -> float:
        """Return the strength of a step."""
        return self.numbers[min(step, len(self.numbers) - 1)]


Strength = float | PerRow | PerStep


def strength_of(x: object, low: float = -math.inf, high: float = math.inf) -> Strength:
    """Check a strength: a number, numbers (one for each row), or a `PerRow` or `PerStep`.

    >>> strength_of([0.0, 0.5], 0, 1)
    PerRow((0.0, 0.5))
    """
    made: Strength
    if isinstance(x, PerRow | PerStep):
        made = x
    elif isinstance(x, list | tuple) or (isinstance(x, Tensor) and x.dim() == 1):
        made = PerRow(x)  # type: ignore[arg-type]
    elif _is_number(x):
        made = float(x)  # type: ignore[arg-type]
    else:
        fail(
            ValueRangeError, "strength", shape_of(x), "a finite number, or one for each row",
            "pass strength=1.0, [0.0, 1.0] for two rows, or PerStep((1.0, 0.5))",
        )  # fmt: skip
    for one in made.numbers if isinstance(made, PerRow | PerStep) else (made,):
        if not low <= one <= high:
            fail(
                ValueRangeError, "strength", f"{one:g}", f"{low:g} to {high:g}",
                "pass a strength in this range",
            )  # fmt: skip
    return made


def is_neutral(x: Strength, neutral: float) -> bool:
    """Return whether a strength is neutral for every row and step."""
    numbers = x.numbers if isinstance(x, PerRow | PerStep) else (x,)
    return all(one == neutral for one in numbers)


def for_rows(x: PerRow, b: int, like: Tensor, branches: int = 1) -> Tensor:
    """Return the strengths of a batch, [b, 1, 1].

    Beams of a row are adjacent; guidance branches are blocks of all rows.

    >>> for_rows(PerRow((0.0, 1.0)), 4, torch.ones(1), branches=2).flatten().tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    many = len(x.numbers)
    if b % (many * branches):
        fail(
            ShapeError, "strength", f"strengths of {many} rows", f"one for each of {b} rows",
            "give one strength for each row of the batch, or a number for all",
        )  # fmt: skip
    made = torch.tensor(x.numbers, dtype=wide(like.dtype), device=like.device)
    return made.repeat_interleave(b // many // branches).repeat(branches).view(-1, 1, 1)


def times(x: Strength, factor: float) -> Strength:
    """Return a strength multiplied by a factor.

    >>> times(PerRow((0.0, 1.0)), -2.0).numbers
    (-0.0, -2.0)
    """
    if isinstance(x, PerRow | PerStep):
        return type(x)(tuple(one * factor for one in x.numbers))
    return x * factor
