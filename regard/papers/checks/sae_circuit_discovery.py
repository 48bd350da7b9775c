"""Heads that tell task from corruption are found from ten prompts of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.circuits.head_codes import area_under, discover_circuit
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim


@check(
    "sae_circuit_discovery", long=True, beyond="circuits of GPT-2 (IOI, greater-than, docstring)"
)
def circuits() -> Claims:
    """Heads that tell task from corruption are found from ten prompts of each."""
    d, heads, planted = 16, 28, torch.arange(28) < 4

    def outputs(prompts: int, task: bool) -> Tensor:
        # Every head says one of four things; four of them say the first two on the task alone.
        thing = torch.randint(0, 4, (prompts, heads))
        thing[:, :4] = thing[:, :4] % 2 + (0 if task else 2)
        said = things[torch.arange(heads), thing]
        return said + 0.3 * torch.randn(prompts, heads, d)

    few: dict[str, Any] = {"codes": 128, "penalty": 0.1}
    found, chance = [], []
    for _ in range(8):
        things = 2 * torch.randn(heads, 4, d)
        task, corrupted = outputs(10, True), outputs(10, False)
        found.append(area_under(discover_circuit(task, corrupted, **few).heads, planted))
        both = torch.cat([task, corrupted])[torch.randperm(20)]
        chance.append(area_under(discover_circuit(both[:10], both[10:], **few).heads, planted))
    area, blind = sum(found) / 8, sum(chance) / 8
    yield claim("node score gives ROC", "area under the curve, mean of eight draws", area).above(
        0.95, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("node score gives ROC", "area with labels shuffled", blind).within(
        0.2, "half", value=0.5, because="eight draws with 4 of 28 heads: two standard errors"
    )
    yield claim("Planted toy", "heads, planted and not", int(planted.sum()) * 100 + heads).equals(
        428, "4 of 28"
    )
