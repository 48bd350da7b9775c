"""Means over the tokens of a text, padding left out and packed documents kept apart."""

from __future__ import annotations

import torch
from torch import Tensor


def document_means(
    x: Tensor, padding: Tensor | None = None, documents: Tensor | None = None
) -> Tensor:
    """Give each token the mean of its document: [b, n, c] to [b, n, c].

    `padding` [b, n] is true at real tokens, `documents` [b, n] names documents (from 0 on).

    >>> x = torch.tensor([[[1.0], [3.0], [5.0]]])
    >>> document_means(x, documents=torch.tensor([[0, 0, 1]])).flatten().tolist()
    [2.0, 2.0, 5.0]
    """
    real = torch.ones_like(x[..., :1]) if padding is None else padding[..., None].to(x.dtype)
    if documents is None:
        means: Tensor = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
        return means.expand_as(x)
    places = documents.long()[..., None]
    room = int(documents.max()) + 1
    sums = x.new_zeros(x.shape[0], room, x.shape[2])
    sums = sums.scatter_add(1, places.expand_as(x), x * real)
    counts = x.new_zeros(x.shape[0], room, 1).scatter_add(1, places, real)
    return torch.gather(sums / counts.clamp_min(1), 1, places.expand_as(x))
