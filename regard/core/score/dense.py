"""A bias that is a table: the last resort for a mask that somebody made as a tensor."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from regard.core.errors import ShapeError, fail
from regard.core.score.base import At, as_float, need_tensor
from regard.core.score.biases import PlaceStep
from regard.core.support.chosen import pick
from regard.core.value import value


@value
class DenseBias(PlaceStep):
    """Add `bias` [b or 1, h or 1, n or 1, m], by place; it may be learned, and -inf removes a pair.

    >>> import torch
    >>> print(DenseBias(torch.zeros(1, 1, 2, 2)))
    DenseBias(<float32 1x1x2x2>)
    """

    bias: Tensor
    _head_axis: ClassVar = {"bias": 1}
    by_token: ClassVar = True
    asks_positions: ClassVar = False

    def __post_init__(self) -> None:
        need_tensor("bias", self.bias, "[b, h, n, m]")

    def change(self, scores: Tensor, at: At) -> Tensor:
        """Look the pair up."""
        row = at.row if self.bias.shape[2] > 1 else at.row * 0
        return scores + as_float(pick(self.bias, at.b, at.h, row, at.col), scores)

    def check(self, b: int, h: int, n: int, m: int, d: int) -> None:
        """Every pair needs its entry."""
        for have, want, axis in zip(
            self.bias.shape, (b, h, n, m), ("b", "h", "n", "m"), strict=True
        ):
            # A call of the first rows of a batch keeps the rule of the batch.
            if have != want and (have != 1 or axis == "m") and not (axis == "b" and have > want):
                fail(
                    ShapeError,
                    "bias",
                    f"{list(self.bias.shape)}",
                    f"{want} along {axis}",
                    f"give the bias {want} entries along {axis}",
                )
