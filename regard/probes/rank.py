"""How many directions a head's map has: rank of the weights without the matrix."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.models.site import Site
from regard.probes.base import Probe
from regard.probes.registry import register
from regard.run.runner import run


@register("rank", groups=("patterns",))
class EffectiveRank(Probe):
    """The effective rank of a head's weights: exp of the entropy of its singular values' shares.

    Read from a sketch A G with `sketch` random columns, one attention with G as values: exact for
    inputs of at most so many tokens, and of a map of larger rank at most `sketch`. Uniform
    attention over all keys has rank 1, an identity n.
    """

    key, title, high = "rank", "effective rank", None
    kinds = ("self", "cross", "joint")
    low = 1.0
    definitions: ClassVar = {
        "entropy": "exp(-sum p log p), p = s / sum s (Roy and Vetterli 2007)",
        "stable": "sum s^2 / max s^2",
    }

    def __init__(
        self, sketch: int = 128, seed: int = 0, where: Any = None, *, definition: str | None = None
    ) -> None:
        super().__init__(where, definition=definition)
        self.sketch, self.seed = sketch, seed

    def look(self, site: Site, call: Call, _: Any) -> None:
        """Attend to random values, orthogonal to each other, and take singular values."""
        values = singular_values(call, self.sketch, self.seed)
        if self.definition == "stable":
            found = values.square().sum(-1) / values[..., 0].square().clamp(min=1e-30)
        else:
            share = values / values.sum(-1, keepdim=True).clamp(min=1e-30)
            found = torch.special.entr(share).sum(-1).exp()
        self.tally.add(site, found[..., None])


def singular_values(call: Call, sketch: int = 128, seed: int = 0) -> Tensor:
    """Singular values of the weights [b, h, min(m, sketch)], of a sketch where m is larger."""
    width = min(call.m, sketch)
    draw = torch.Generator().manual_seed(seed)
    basis = torch.randn(call.m, width, generator=draw, dtype=torch.float64)
    basis = torch.linalg.qr(basis).Q.to(call.q.device)
    if width < call.m:  # of a random subspace: lengths shrink by sqrt(width / m)
        basis = basis * (call.m / width) ** 0.5
    wide = call.replace(q=call.q.double(), k=call.k.double())
    parts = []
    # Values are no wider than queries: some executors need that.
    for start in range(0, width, call.d):
        some = basis[:, start : start + call.d]
        short = call.d - some.shape[1]
        v = torch.nn.functional.pad(some, (0, short)).expand(call.b, call.g, -1, -1)
        parts.append(run(wide.replace(v=v.contiguous())).out[..., : some.shape[1]])
    return torch.linalg.svdvals(torch.cat(parts, -1))
