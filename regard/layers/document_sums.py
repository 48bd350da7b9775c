"""Sums and means over the tokens of each packed document, padding left out."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.scan import starts
from regard.layers.inputs import LayerInput


def document_means(
    x: Tensor, padding: Tensor | None = None, documents: Tensor | None = None
) -> Tensor:
    """Return for each token the mean of its document: [b, n, c] to [b, n, c].

    `padding` [b, n] is true at real tokens, `documents` [b, n] are ids of any value.

    >>> x = torch.tensor([[[1.0], [3.0], [5.0]]])
    >>> document_means(x, documents=torch.tensor([[0, 0, 1]])).flatten().tolist()
    [2.0, 2.0, 5.0]
    """
    real = torch.ones_like(x[..., :1]) if padding is None else padding[..., None].to(x.dtype)
    if documents is None:
        means: Tensor = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
        return means.expand_as(x)
    ids, places = documents.unique(return_inverse=True)
    places = places[..., None]
    sums = x.new_zeros(x.shape[0], len(ids), x.shape[2])
    sums = sums.scatter_add(1, places.expand_as(x), x * real)
    counts = x.new_zeros(x.shape[0], len(ids), 1).scatter_add(1, places, real)
    return torch.gather(sums / counts.clamp_min(1), 1, places.expand_as(x))


def running_sum(x: Tensor, input: LayerInput, name: str) -> Tensor:
    """Sum x [b, h, n, c] over each token and those before it, in its own document.

    Padding counts as zero; the sum of earlier calls is kept in the input's memory under `name`.
    """
    if input.padding is not None:
        x = x * input.padding[:, None, :, None]
    total = x.cumsum(2)
    if input.documents is not None:
        first = starts(input.documents)[:, None, :, None]
        before = torch.where(first, total - x, 0.0)
        # Each token subtracts what was summed before its document began.
        place = torch.where(first, torch.arange(x.shape[2], device=x.device)[:, None], 0)
        begun = place.cummax(2).values.expand_as(x)
        return total - before.gather(2, begun)
    if input.memory is not None:
        kept = input.memory.get(name)
        total = total if kept is None else total + kept
        input.memory.keep(name, total[:, :, -1:])
    return total
