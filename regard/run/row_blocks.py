"""Blocks of rows of one head: what a survey makes and its reducers read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.score.base import At


class BlockPlace(NamedTuple):
    """Where a block of rows stands, and which of its pairs may meet: for heads of one support."""

    rows: slice
    cols: slice
    at: At
    i: Tensor  # positions of the queries, [r]
    met: Tensor | None  # pairs that may meet among `asked`, None if all may
    hidden: Tensor | None  # those that may not
    asked: slice  # keys
    heads: range  # which share it
    scores: Tensor  # room for scores, [r, c], and for their exponentials
    size: Tensor
    part: Tensor  # scores of `asked`


@dataclass
class RowBlock:
    """Some rows of one head with the keys they may meet: what a reducer reads.

    Weights are `size * share[:, None]` ([r, c] and [r]); `size` is never divided, since most
    reducers need no more than sums. Where `top` was taken off the scores, they are log `size`.
    """

    place: BlockPlace
    b: int
    h: int
    scores: Tensor
    size: Tensor
    share: Tensor
    known_lse: Tensor | None  # where weights are no softmax
    top: Tensor | None  # what was taken off the scores before `size`, [r]
    tops: Tensor | None  # largest score of each tile of keys, before that
    tile: int
    sink: Tensor | None = None  # what a sink leaves to the keys, [r]

    @property
    def rows(self) -> slice:
        """Which queries these are."""
        return self.place.rows

    @property
    def cols(self) -> slice:
        """Which keys: whole tiles, and so perhaps beyond the last one, with sizes of zero."""
        return self.place.cols

    @property
    def i(self) -> Tensor:
        """Positions of the queries, [r]."""
        return self.place.i

    @property
    def j(self) -> Tensor:
        """Positions of the keys, [1, c]."""
        return self.place.at.j

    @cached_property
    def lse(self) -> Tensor | None:
        """Log of all weight in each row, [r]; -inf where there is none."""
        return self.known_lse if self.top is None else self.top + torch.log(self.total)

    @cached_property
    def total(self) -> Tensor:
        """Sum of `size` in each row, [r]."""
        return self.size.sum(1)

    @cached_property
    def given(self) -> Tensor:
        """Weight that each key is given by the rows of each tile, [t, c]."""
        size, share = self.size, self.share
        return torch.stack([torch.mv(size[some].T, share[some]) for some in self.tiles])

    @cached_property
    def tiles(self) -> list[slice]:
        """Which rows of the block are of one tile of queries, and those of the next."""
        start, stop = self.rows.start, self.rows.stop
        ends = [*range(start - start % self.tile + self.tile, stop, self.tile), stop]
        return [slice(a - start, b - start) for a, b in pairwise([start, *ends])]

    @cached_property
    def tile_top(self) -> Tensor:
        """Largest `size` in each tile of keys, [r, t]."""
        if self.tops is not None and self.top is not None:
            return torch.exp(self.tops - self.top[:, None])
        tops: Tensor = self.size.unflatten(1, (-1, self.tile)).amax(-1)
        return tops

    @cached_property
    def largest(self) -> tuple[Tensor, Tensor]:
        """Largest `size` of each row and its column, [r, 1] each: by way of its tile."""
        if self.tops is None:
            size, key = self.size.max(1, keepdim=True)
            return size, key
        tile = self.tops.argmax(1)
        row = torch.arange(len(tile), device=tile.device)
        within = self.scores.unflatten(1, (-1, self.tile))[row, tile].argmax(1)
        key = tile * self.tile + within
        return self.size[row, key][:, None], key[:, None]

    @cached_property
    def weights(self) -> Tensor:
        """The weights themselves, [r, c]."""
        return self.size * self.share[:, None]
