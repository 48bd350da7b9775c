"""The tiles of keys of each tile of queries, as lists: what is left of a tile map to fold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.tilemap import EMPTY


class TileLists(NamedTuple):
    """For each tile of queries how many tiles of keys it meets, which, and in what states.

    `keys` and `states` [t_q, c] are in rising order; beyond the count they say nothing.
    """

    counts: Tensor
    keys: Tensor
    states: Tensor

    @staticmethod
    def of(states: Tensor) -> TileLists:
        """Build the list from states [t_q, t_k]."""
        met = states != EMPTY
        counts = met.sum(1)
        most = int(counts.max()) if counts.numel() else 0
        # Tiles of keys in rising order first, the empty ones after them.
        keys = torch.argsort((~met).to(torch.int8), dim=1, stable=True)[:, :most]
        return TileLists(counts, keys, states.gather(1, keys))

    @property
    def real(self) -> Tensor:
        """Which entries stand for a tile, [t_q, c]."""
        place = torch.arange(self.keys.shape[1], device=self.keys.device)
        return place < self.counts[:, None]

    def only(self, state: int) -> TileLists:
        """Leave out the tiles in another state."""
        kept = self.real & (self.states == state)
        order = torch.argsort((~kept).to(torch.int8), dim=1, stable=True)
        counts = kept.sum(1)
        order = order[:, : int(counts.max()) if counts.numel() else 0]
        return TileLists(counts, self.keys.gather(1, order), self.states.gather(1, order))


__all__ = ["TileLists"]
