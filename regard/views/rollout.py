"""Attention rollout over the patches of an image: from which of them a layer could know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.probes.maps import log_scale
from regard.views.word_maps import evenly

# Layers are left out, evenly, where all maps together would take more; and images of more tokens
# are not rolled out at all.
ROLLOUT_BYTES = 3 * 2**20
MOST_TOKENS = 1024
RESIDUAL = 0.5


@dataclass(frozen=True)
class RolledOut:
    """Rollouts up to each layer, [layers, n, n] from every token to every token of the input.

    `maps[l]` is the product of (A + I) / 2 over the layers 0 to l, A the mean over heads, each row
    summing to 1 (Abnar and Zuidema 2020). `first` is the place of the first patch, `grid` the rows
    and columns of patches. It says where weight came from; not what mattered.

    >>> site = Site(0, module="attn", grid=(1, 2))
    >>> rolled = RolledOut(torch.eye(3)[None], [site], (1, 2), 1)
    >>> rolled.map(patch=(0, 1)).tolist(), rolled.map().tolist()
    ([[0.0, 1.0]], [[0.0, 0.0]])
    """

    maps: Tensor = field(repr=False)
    sites: list[Site] = field(repr=False)
    grid: tuple[int, int]
    first: int

    def map(self, layer: int = -1, patch: tuple[int, int] | None = None) -> Tensor:
        """Return the rollout [rows, columns] up to a layer, from a patch (row, column).

        Without one, from the first token where special tokens come first, such as a class token;
        else the mean over patches.
        """
        if not -len(self.maps) <= layer < len(self.maps):
            fail(
                ValueRangeError, "layer", layer, f"one of {len(self.maps)} layers",
                "take -1, the last",
            )  # fmt: skip
        rows, columns = self.grid
        if patch is None:
            row = self.maps[layer, 0] if self.first else self.maps[layer].mean(0)
        else:
            if not (0 <= patch[0] < rows and 0 <= patch[1] < columns):
                fail(
                    ValueRangeError, "patch", patch, f"a place in {rows} x {columns}",
                    "count rows and columns from 0",
                )  # fmt: skip
            row = self.maps[layer, self.first + patch[0] * columns + patch[1]]
        return row[self.first : self.first + rows * columns].view(rows, columns)


def roll_out(calls: Iterable[Call]) -> RolledOut | None:
    """Roll out the self-attention of a tower that sees, its calls in their order.

    None where there are not two layers over the same patches, or too many tokens.
    """
    seen = [
        call for call in calls
        if isinstance(call.site, Site) and call.site.kind == "self" and call.site.grid
        and len(call.site.grid) == 2 and call.n == call.m
    ]  # fmt: skip
    if len({(call.n, call.site.grid) for call in seen}) != 1 or len(seen) < 2:
        return None
    n, (rows, columns) = seen[0].n, seen[0].site.grid
    first = n - rows * columns
    if n > MOST_TOKENS or first < 0:
        return None
    whole = torch.eye(n, dtype=torch.float64)
    maps = []
    for call in seen:
        # Tokens of one image: a small matrix, of one layer at a time.
        weights = closed_weights(call, "rollout")[0].double().mean(0).cpu()
        mixed = (1 - RESIDUAL) * weights + RESIDUAL * torch.eye(n, dtype=torch.float64)
        whole = (mixed / mixed.sum(1, keepdim=True)) @ whole
        maps.append(whole.float())
    return RolledOut(torch.stack(maps), [call.site for call in seen], (rows, columns), first)


def packed_rollout(
    rolled: RolledOut, room: int = ROLLOUT_BYTES
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what a manifest says of a rollout, and its bytes [layers, n, patches], log scale."""
    rows, columns = rolled.grid
    patches = slice(rolled.first, rolled.first + rows * columns)
    each = rolled.maps.shape[1] * rows * columns
    layers = evenly(list(range(len(rolled.maps))), max(2, room // each))
    manifest = {
        "layers": layers, "of": len(rolled.maps), "grid": [rows, columns], "first": rolled.first,
        "modules": [rolled.sites[layer].module for layer in layers],
    }  # fmt: skip
    return manifest, log_scale(rolled.maps[layers][:, :, patches])


__all__ = ["RolledOut", "packed_rollout", "roll_out"]
