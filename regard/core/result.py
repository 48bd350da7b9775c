"""The result of one call of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from regard.core.survey import Survey


class Counted(NamedTuple):
    """Work that was done, counted by the executor that did it.

    `pairs` of a query of one head and a key were scored, in `flops` floating point operations of
    products (two for each multiply and add); `bytes` were read and written.
    """

    pairs: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0

    def less(self, before: Counted) -> Counted:
        """Return the work that was done since `before`.

        >>> Counted(5, 9, 3).less(Counted(1, 2, 3))
        Counted(pairs=4, flops=7, bytes=0)
        """
        return Counted(
            self.pairs - before.pairs, self.flops - before.flops, self.bytes - before.bytes
        )


class Result(NamedTuple):
    """What `run` returns: `out` [b, h, n, e] always, the rest where it was wanted.

    `lse` [b, h, n] is the log of all weight, sinks counted; `weights` [b, h, n, m] is the matrix,
    `survey` the statistics. `cost` is what was computed, and `executor` names what computed it.

    >>> import torch
    >>> from regard.core.call import Call
    >>> from regard.run.runner import run
    >>> q = torch.randn(1, 2, 3, 8)
    >>> result = run(Call.of(q, q, q), ("lse",))
    >>> result.lse.shape, result.executor, result.cost.pairs
    (torch.Size([1, 2, 3]), 'fused', 18.0)
    """

    out: Tensor
    lse: Tensor | None = None
    weights: Tensor | None = None
    survey: Survey | None = None
    cost: Counted = Counted()
    executor: str = ""
