"""Grouped-query attention whose groups are not equal: key heads that matter serve more queries."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail
from regard.core.heads import gather_heads
from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.batch_statistics import keeps_statistics
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


def allocated(shares: Tensor, heads: int) -> Tensor:
    """Round shares [g] to whole numbers that sum to `heads`; equal shares where there is no sum.

    Rounding is repaired at the largest number where there are too many, at the smallest where
    there are too few.

    >>> allocated(torch.tensor([1.0, 1.0, 2.0]), 8).tolist()
    [2, 2, 4]
    """
    total = shares.sum()
    if not bool(total > 0) or not bool(torch.isfinite(total)):
        shares, total = torch.ones_like(shares), torch.tensor(float(len(shares)))
    counts = (heads * shares / total).round().long()
    while (over := int(counts.sum()) - heads) != 0:
        counts[counts.argmax() if over > 0 else counts.argmin()] -= 1 if over > 0 else -1
    return counts


@register("kdgqa")
@method("kdgqa", call='import regard\nlayer = regard.layer("kdgqa", 512, heads=8, kv_heads=2)')
class KeyDriven(Attention):
    """Key heads with larger norms serve more query heads (KDGQA).

    While training, each batch allocates query heads anew, in proportion to how far the norm of
    each key head is above the least; a key head may serve none. The last batch's allocation is
    kept for inference, so an output does not depend on the other rows of its batch.

    >>> layer = KeyDriven(64, heads=8, kv_heads=2)
    >>> _ = layer(torch.randn(1, 5, 64))
    >>> int(layer.allocation.sum())
    8
    """

    can: ClassVar[Capabilities] = Capabilities(meta=False)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "kv_heads": 2}
    allocation: Tensor

    def __init__(self, dim: int, heads: int, *, kv_heads: int | None = None, **settings: Any):
        groups = max(heads // 4, 1) if kv_heads is None else kv_heads
        super().__init__(dim, heads, kv_heads=groups, **settings)
        even = torch.full((groups,), heads // groups)
        self.register_buffer("allocation", even)

    @torch.no_grad()
    def allocate(self, k: Tensor) -> None:
        """Allocate the query heads by the norms of k [b, g, m, d]."""
        norms = torch.linalg.matrix_norm(k.float()).sum(0)
        self.allocation.copy_(allocated(norms - norms.min(), self.heads))

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend with the key head that each query head is allocated to."""
        if keeps_statistics(self):
            self.allocate(call.k)
        groups = [g for g, count in enumerate(self.allocation.tolist()) for _ in range(count)]
        k, v = gather_heads(call.k, groups), gather_heads(call.v, groups)
        return super().look(call.replace(k=k, v=v), input)


@register("dgqa_ema")
class MovingAllocation(KeyDriven):
    """Query heads follow a moving average of key norms, updated every `window` steps (DGQA-EMA).

    >>> MovingAllocation(64, heads=8, kv_heads=2, window=10).window
    10
    """

    norms: Tensor
    step: Tensor

    def __init__(
        self, dim: int, heads: int, *, window: int = 300, keep: float = 0.9, **settings: Any
    ) -> None:
        super().__init__(dim, heads, **settings)
        need_size("window", window)
        if not 0 <= keep <= 1:
            fail(ValueRangeError, "keep", keep, "a share from 0 to 1", "the paper keeps 0.9")
        self.window, self.keep = window, keep
        self.register_buffer("norms", torch.zeros(self.kv_heads))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def allocate(self, k: Tensor) -> None:
        """Average norms over the window, and allocate at its end."""
        self.step += 1
        if int(self.step) % self.window:
            return
        norms = torch.linalg.matrix_norm(k.float()).sum(0)
        self.allocation.copy_(allocated(self.shares(norms), self.heads))
        self.norms.copy_(self.keep * norms + (1 - self.keep) * self.norms)

    def shares(self, norms: Tensor) -> Tensor:
        """Return how much each key head should serve."""
        return self.keep * norms + (1 - self.keep) * self.norms


@register("dgqa_diff")
class ChangingAllocation(MovingAllocation):
    """Query heads follow the change of key norms since the last window (DGQA-diff).

    >>> ChangingAllocation(64, heads=8, kv_heads=2).shares(torch.tensor([1.0, 3.0])).tolist()
    [1.0, 3.0]
    """

    def shares(self, norms: Tensor) -> Tensor:
        """Return how much the norms changed."""
        return (norms - self.norms).abs()
