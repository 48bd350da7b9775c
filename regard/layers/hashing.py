"""Attention to items with the same hash: long behavior sequences as one table (SDIM)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import ShapeError, fail
from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("sdim")
@method("sdim", call='import regard\nlayer = regard.layer("sdim", 64, context_dim=64)')
class HashedInterest(Layer):
    """A candidate gathers the behaviors whose random signatures equal its own (SDIM).

    `bits` random projections give signs, in groups of `group`; `y = mean over groups of the unit
    vector of the sum of behaviors that agree with the candidate in all bits of the group`. A
    behavior at angle t is gathered with probability `(1 - t / pi) ** group`. Any number of
    behaviors is kept as one table of `bits / group * 2 ** group` sums. Signs have no gradient: it
    reaches behaviors, not candidates.

    >>> HashedInterest(8)(torch.randn(1, 2, 8), torch.randn(1, 50, 8)).shape
    torch.Size([1, 2, 8])
    """

    can: ClassVar[Capabilities] = Capabilities(
        causal=False, documents=False, constant_memory=True, linear=True
    )
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "bits": 12}
    directions: Tensor

    def __init__(
        self, dim: int, *, bits: int = 48, group: int = 3, causal: bool = False,
        context_dim: int | None = None, bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("group", group)
        need_size("bits", bits)
        if bits % group:
            fail(ShapeError, "bits", bits, f"a multiple of group={group}", "pass whole groups")
        if self.context_dim != dim:
            fail(
                ShapeError, "context_dim", self.context_dim, f"{dim}, as dim",
                "candidates and behaviors share one hash: project one of them",
            )  # fmt: skip
        self.group = group
        self.register_buffer("directions", torch.randn(bits, dim))
        self.to_v = nn.Linear(dim, dim, bias)

    def codes(self, x: Tensor) -> Tensor:
        """Hash vectors [b, n, dim] to the number of their bucket in each group, [b, n, groups]."""
        signs = (x.detach() @ self.directions.T > 0).unflatten(-1, (-1, self.group))
        powers = 2 ** torch.arange(self.group, device=x.device)
        codes: Tensor = (signs * powers).sum(-1)
        return codes

    def table(self, behaviors: Tensor, keep: Tensor | None = None) -> Tensor:
        """Sum behaviors [b, m, dim] by bucket: [b, groups, 2 ** group, dim]; sums of parts add."""
        codes, values = self.codes(behaviors), self.to_v(behaviors)
        if keep is not None:
            values = values * keep[..., None]
        groups = codes.shape[2]
        room = values.new_zeros(len(values), groups, 2**self.group, values.shape[2])
        places = codes.mT[..., None].expand(-1, -1, -1, values.shape[2])
        filled: Tensor = room.scatter_add(2, places, values[:, None].expand(-1, groups, -1, -1))
        return filled

    def gather(self, x: Tensor, table: Tensor) -> Tensor:
        """Read the buckets of candidates [b, n, dim]."""
        places = self.codes(x).mT[..., None].expand(-1, -1, -1, table.shape[3])
        gathered: Tensor = F.normalize(table.gather(2, places), dim=-1).mean(1)
        return gathered

    def compute(self, input: LayerInput) -> Tensor:
        """Fill the table once, and gather."""
        memory = input.memory
        table = None if memory is None else memory.get("table")
        if table is None:
            table = self.table(input.context, input.padding)
            if memory is not None:
                memory.keep("table", table)
        return self.gather(input.x, table)
