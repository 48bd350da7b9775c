"""Made-up parse trees, and profiles of heads by lag."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.analysis.dependency import DependencyTree
from regard.core.call import Call
from regard.models.engine import Engine
from regard.models.site import Site
from regard.probes.lags import LagProfile
from regard.probes.reading import Reading


def sentence(n: int = 10) -> DependencyTree:
    """A tree whose words hang on the next one, on one before, or on any."""
    heads, names = [], []
    for i in range(n):
        kind = ("next", "back", "any")[int(torch.randint(3, ()))]
        if kind == "next" and i + 1 < n:
            head = i + 1
        elif kind == "back" and i > 0:
            head = int(torch.randint(i, ()))
        else:
            kind, head = "any", (i + int(torch.randint(1, n, ()))) % n
        heads.append(head)
        names.append(kind)
    return DependencyTree(torch.tensor(heads), tuple(names))


def profile_of(call: Call, reading: Reading, reach: int = 5) -> Tensor:
    """Lag profiles [h, 2 reach + 1] of one call."""
    probe = LagProfile(reach)
    probe.show(reading)
    Engine([probe]).run(
        call.replace(site=Site(0, module="attention", heads=call.h, kv_heads=call.g))
    )
    probe.told()
    return next(iter(probe.profiles.values()))
