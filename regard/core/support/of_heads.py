"""Some heads of a support that asks which head it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from regard.core.spans import Spans
from regard.core.support.base import Support
from regard.core.tilemap import Grid
from regard.core.value import value


@value
class OfHeads(Support):
    """Some heads of a support, asked by the numbers they had: head x is head `heads[x]` of it.

    >>> from regard.core.support import Where
    >>> second = Where(lambda b, h, i, j: (h == 1) & (j == j))
    >>> OfHeads(second, (1, 0)).matrix(1)[0, :, 0, 0].tolist()
    [True, False]
    """

    part: Support
    heads: tuple[int, ...]

    def _old(self, h: Tensor) -> Tensor:
        # Heads beyond the last are asked about by a look at the shape of the answer alone.
        old = torch.tensor(self.heads, device=h.device)
        return old[h.clamp(max=len(self.heads) - 1)]

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Ask about the old numbers."""
        return self.part.allows(b, self._old(h), i, j)

    def cover(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Ask about the old numbers."""
        return self.part.cover(Grid(grid.b, self._old(grid.h), grid.i, grid.j))

    @property
    def moves(self) -> bool:
        """Whether the part asks for the position of the query."""
        return self.part.moves

    @property
    def shifted_parts(self) -> tuple[Support, ...]:
        """The part."""
        return (self.part,)

    def take_heads(self, heads: Sequence[int]) -> Self:
        """Select some of these heads."""
        return self.replace(heads=tuple(self.heads[h] for h in heads))

    def horizon(self, i: int) -> Spans:
        """Return keys that the part can still need."""
        return self.part.horizon(i)

    def extent(self) -> tuple[int, int]:
        """Return the batch of the part, and these heads."""
        return self.part.extent()[0], len(self.heads)

    def check(self, n: int, m: int) -> None:
        """Check the part."""
        self.part.check(n, m)

    def shift(self, offset: int) -> Support:
        """Shift the part."""
        return self.replace(part=self.part.shift(offset))

    def counted_from(self, i: int, j: int) -> Support | None:
        """Count in the part."""
        found = self.part.counted_from(i, j)
        return None if found is None else self.replace(part=found)
