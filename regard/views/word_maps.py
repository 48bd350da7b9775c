"""Word maps as arrays for a page: a slider over steps, one over layers, each at its own grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.models.site import Site
from regard.probes.regions import WordMaps

# Of all maps together; where they are more, steps are left out, evenly.
WORD_BYTES = 8 * 2**20


def packed_words(maps: WordMaps, room: int = WORD_BYTES) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a manifest says of word maps, and their arrays.

    `words/0` float16 [1 + steps, tokens, rows, columns] is the mean over layers at the largest
    grid, `words/S` that of the site S - 1 at its own; the first along steps is the mean over all.
    """
    cells = sum(maps.found[maps.steps[0], site][0].numel() for site in maps.sites
                if (maps.steps[0], site) in maps.found)  # fmt: skip
    each = 2 * len(maps.words) * (cells + maps.grid[0] * maps.grid[1])
    steps = evenly(maps.steps, max(1, room // max(each, 1) - 1))
    arrays = {"words/0": _stacked([maps.map(), *(maps.map(step) for step in steps)])}
    for number, site in enumerate(maps.sites):
        arrays[f"words/{number + 1}"] = _stacked(_of_site(maps, site, steps))
    manifest = {
        "tokens": list(maps.words),
        "branch": maps.branch,
        "grid": list(maps.grid),
        "steps": steps,
        "left_out": len(maps.steps) - len(steps),
        "sites": [
            {"layer": site.layer, "kind": site.kind, "module": site.module} for site in maps.sites
        ],
    }
    return manifest, arrays


def evenly(steps: list[int], most: int) -> list[int]:
    """Return some of the steps, as far apart as can be, the first and the last among them.

    >>> evenly(list(range(10)), 4)
    [0, 3, 6, 9]
    """
    if len(steps) <= most:
        return steps
    places = np.linspace(0, len(steps) - 1, most).round().astype(int)
    return [steps[i] for i in dict.fromkeys(places.tolist())]


def _of_site(maps: WordMaps, site: Site, steps: list[int]) -> list[Tensor]:
    """The mean over steps, and each chosen step; nothing where a step did not reach the site."""
    found = {step: x for (step, at), x in maps.found.items() if at == site}
    mean = torch.stack(list(found.values())).mean(0)
    return [mean, *(found.get(step, torch.zeros_like(mean)) for step in steps)]


def _stacked(some: list[Tensor]) -> np.ndarray:
    return torch.stack(some).half().numpy()
