"""Whole maps of small inputs, by token and by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ShapeError, fail, shape_of
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.site import Site
from regard.models.stage import Edit, Stage


class WholeMaps(Stage):
    """Keep the weights [b, h, n, m] of every call; for inputs of a sentence or two."""

    want = ("weights",)

    def __init__(self, where: Any = None) -> None:
        super().__init__(where)
        self.found: dict[Site, list[Tensor]] = {}

    def see(self, call: Call, result: Result) -> None:
        """Keep them."""
        assert result.weights is not None
        self.found.setdefault(call.site, []).append(result.weights.detach().float().cpu())


def whole_maps(model: Any, **inputs: Tensor) -> dict[Site, Tensor]:
    """Run a model on one batch, and give the weights [b, h, n, m] of each site.

    >>> from regard.layers.attention import Attention
    >>> maps = whole_maps(Attention(8, heads=2), x=torch.randn(1, 3, 8))
    >>> [x.shape for x in maps.values()]
    [torch.Size([1, 2, 3, 3])]
    """
    stage = WholeMaps()
    with attach(model, stage, check=False), torch.no_grad():
        model(**inputs)
    return {site: each[0] for site, each in stage.found.items()}


class FeltWeights(Edit):
    """Keep the gradient of a loss in each weight: |dL / dA| [b, h, n, m] of every site.

    Large weights with a small gradient do not matter to the loss, as those on [SEP] (Clark 2019).
    """

    def __init__(self, where: Any = None) -> None:
        super().__init__("prob", self._keep, where)
        self._weights: list[Tensor] = []
        self._sites: list[Site] = []

    def _keep(self, weights: Tensor) -> Tensor:
        weights.retain_grad()
        self._weights.append(weights)
        return weights

    def see(self, call: Call, result: Result) -> None:
        """Remember which site it is."""
        self._sites.append(call.site)

    @property
    def found(self) -> dict[Site, Tensor]:
        """The gradient sizes by site."""
        pairs = zip(self._sites, self._weights, strict=True)
        return {site: x.grad.abs() for site, x in pairs if x.grad is not None}


def word_maps(weights: Tensor, word_of: Sequence[int] | Tensor) -> Tensor:
    """Return weights between words [..., w, w] of those between pieces [..., n, n] (Clark 2019).

    To a word goes what its pieces get, together; from a word comes the mean of what they give.
    `word_of` [n] numbers the word of each piece from 0 on; -1 leaves a piece out.

    >>> word_maps(torch.full((3, 3), 1 / 3), [0, 0, 1])
    tensor([[0.6667, 0.3333],
            [0.6667, 0.3333]])
    """
    word = torch.as_tensor(word_of, device=weights.device)
    if weights.shape[-2:] != (len(word), len(word)):
        fail(
            ShapeError, "word_of", f"{len(word)} pieces", f"{shape_of(weights)}, one for each",
            "number the word of every piece",
        )  # fmt: skip
    belongs = (word[:, None] == torch.arange(int(word.max()) + 1, device=word.device)).to(weights)
    mean: Tensor = belongs / belongs.sum(0).clamp(min=1)
    return mean.T @ weights @ belongs
