"""A support that is a table: the last resort for a mask that somebody made as a tensor."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.core.errors import ShapeError, fail, shape_of
from regard.core.support.base import Support
from regard.core.support.chosen import pick
from regard.core.value import value


@value
class DenseMask(Support):
    """Pairs that a bool tensor [b or 1, h or 1, n or 1, m] allows, by position.

    Memory is that of the table. Tiles are computed from every pair.

    >>> DenseMask(torch.tensor([[[[True, False], [True, True]]]])).matrix(2)[0, 0].int().tolist()
    [[1, 0], [1, 1]]
    """

    allowed: Tensor

    _head_axis: ClassVar = {"allowed": 1}

    def __post_init__(self) -> None:
        x = self.allowed
        if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype != torch.bool:
            fail(ShapeError, "allowed", shape_of(x), "a bool tensor [b, h, n, m]", "add axes of 1")

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Look the pair up; beyond the ends the nearest entry is read."""
        n, m = self.allowed.shape[2:]
        return pick(self.allowed, b, h, i.clamp(0, n - 1), j.clamp(0, m - 1))

    def extent(self) -> tuple[int, int]:
        """Return batch and heads of the table."""
        return self.allowed.shape[0], self.allowed.shape[1]

    @property
    def moves(self) -> bool:
        """Whether queries have rows of their own."""
        return self.allowed.shape[2] > 1

    def check(self, n: int, m: int) -> None:
        """The table needs a row for each query and a column for each key."""
        rows, columns = self.allowed.shape[2:]
        if (rows != 1 and rows < n) or columns < m:
            fail(
                ShapeError,
                "allowed",
                f"a table of {rows} x {columns}",
                f"at least {n} x {m}",
                "make the mask for every query and key",
            )
