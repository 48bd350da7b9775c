"""Attention to a window around each token of a sequence, an image or a video."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.method import method
from regard.core.score import LatticeBias, Score
from regard.core.support import Neighborhood, Support
from regard.layers.attention import Attention
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("natten")
@method(
    "natten",
    call='import regard\nlayer = regard.layer("natten", 256, heads=8, grid=(32, 32), window=7)',
)
class NeighborhoodAttention(Attention):
    """Each token attends to the window around it on a grid; at the edges windows move inward.

    `window`, `dilation` and `stride` are numbers, or one for each axis of `grid`. A causal layer's
    windows end at the token on every axis. With `relative=True` each head learns a bias for every
    offset within the window.

    >>> layer = NeighborhoodAttention(32, heads=4, grid=(6, 4), window=3)
    >>> layer(torch.randn(1, 24, 32)).shape
    torch.Size([1, 24, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        cross=False, padding=False, left_padding=False, documents=False, any_length=False,
        multihead_weights=True,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "grid": (6, 4), "window": 3}

    def __init__(
        self, dim: int, heads: int, *, grid: Sequence[int], window: int | Sequence[int],
        dilation: int | Sequence[int] = 1, stride: int | Sequence[int] = 1,
        relative: bool = False, causal: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        self.decides(settings, "support")
        near = Neighborhood(window, tuple(grid), dilation, stride, causal)  # type: ignore[arg-type]
        super().__init__(dim, heads, causal=causal, support=near, **settings)
        self.near = near
        if relative:
            sides = [2 * k * d - 1 for k, d in zip(near.kernel, near.dilation, strict=True)]
            self.table = torch.nn.Parameter(torch.zeros(heads, *sides))

    def support(self) -> Support:
        """Return the window; a causal one contains no later token in row-major order."""
        return self.near

    def score(self) -> Score:
        """Add the bias of each offset."""
        plain = super().score()
        if not hasattr(self, "table"):
            return plain
        return plain + LatticeBias(self.table, self.near.lattice)

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend on the whole grid, or from the position of a decoder."""
        if not self.causal and call.n != prod(self.near.lattice):
            self.cannot(
                "x", f"{call.n} tokens", f"run on a part of its grid {self.near.lattice}",
                "pass one token for each cell",
            )  # fmt: skip
        return super().look(call, input)
