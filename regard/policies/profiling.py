"""First-order effect on a loss of masking keys, by distance, from one backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.partial import wide
from regard.core.result import Result
from regard.models.stage import Stage
from regard.run.reducers import Reducer
from regard.run.row_blocks import RowBlock
from regard.run.survey import survey_call


def masking_effect(weights: Tensor, pull: Tensor, mean: Tensor) -> Tensor:
    """Return the first-order rise of a loss when single entries are masked and rows renormalized.

    With weights A, G = dL/dA (`pull`, [.., n, m]) and D_i = sum_n G_in A_in (`mean`, [.., n, 1]),

        E_ij = -G_ij A_ij + sum_{n != j} G_in A_in A_ij / (1 - A_ij)
             = A_ij (D_i - G_ij) / (1 - A_ij),

    which is exact where L is linear in A. (MoA, Fu et al. 2024)

    >>> a, g = torch.tensor([[0.25, 0.75]]), torch.tensor([[1.0, 3.0]])
    >>> masking_effect(a, g, (a * g).sum(-1, keepdim=True)).tolist()  # 3 - 2.5 and 1 - 2.5
    [[0.5, -1.5]]
    """
    # A key with all the weight of its row leaves nothing to renormalize.
    return weights * (mean - pull) / (1 - weights).clamp(min=1e-4)


class MaskingEffects(Reducer):
    """Sum `masking_effect` by distance: [b, h, ceil(n / size)], keys before `first` left out.

    `grad` [b, h, n, e] is the gradient of the loss at the output of a call. G = grad v^T is
    computed block by block, so no n x m matrix is kept.
    """

    def __init__(self, call: Call, grad: Tensor, size: int, first: int = 0) -> None:
        dtype = wide(call.q.dtype)
        self.v, self.grad = call.v.to(dtype), grad.to(dtype)
        self.size, self.first, self.share = size, first, call.h // call.g
        count = -(-call.m // size)
        self.found = torch.zeros(call.b, call.h, count, dtype=dtype, device=call.q.device)

    def take(self, block: RowBlock) -> None:
        """Add one block of rows, with every key they may attend to."""
        b, h, start = block.b, block.h, block.cols.start
        real = slice(start, min(block.cols.stop, self.v.shape[2]))
        weights = block.weights[:, : real.stop - start]
        pull = self.grad[b, h, block.rows] @ self.v[b, h // self.share, real].T
        mean = (weights * pull).sum(-1, keepdim=True)
        found = masking_effect(weights, pull, mean)[:, max(self.first - start, 0) :]
        later = block.j[max(self.first - start, 0) : real.stop - start]
        apart = (block.i[:, None] - later).clamp(min=0) // self.size
        self.found[b, h].index_add_(0, apart.flatten(), found.flatten())


class Profile(Stage):
    """Sum the effects of masking at every site during a backward pass: {layer: [g, d]}.

    Query heads that share a key head are summed, since they keep the same keys.
    """

    def __init__(self, size: int, first: int = 0) -> None:
        super().__init__()
        self.size, self.first = size, first
        self.found: dict[int, Tensor] = {}

    def after(self, call: Call, partial: Result) -> Result:
        """Register a hook on the gradient of the output."""

        def told(grad: Tensor) -> None:
            effects = MaskingEffects(call, grad, self.size, self.first)
            survey_call(call, reducers=[effects])
            by_key = effects.found.sum(0).unflatten(0, (call.g, -1)).sum(1)
            layer = call.site.layer or 0
            self.found[layer] = self.found.get(layer, 0) + by_key

        if partial.out.requires_grad:
            partial.out.register_hook(told)
        return partial
