"""Convolutions along a sequence, aware of padding, packed documents and decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.arguments import need_size
from regard.layers.inputs import LayerInput


def taps(x: Tensor, size: int, input: LayerInput, name: str, *, causal: bool) -> Tensor:
    """Return each token's neighborhood: x [b, n, c] to [b, n, size, c], zeros beyond the ends.

    Causal taps are the token itself, last, and those before it; otherwise they are around it.
    Padding is zero, other documents' tokens are zero, and the last `size - 1` tokens are kept in
    the input's memory under `name`.
    """
    if input.padding is not None and not input.crosses:
        x = x * input.padding[..., None]
    before = size - 1 if causal else size // 2
    after = size - 1 - before
    if input.memory is not None and causal:
        kept = input.memory.get(name)
        long = F.pad(x, (0, 0, before, 0)) if kept is None else torch.cat((kept, x), 1)
        input.memory.keep(name, long[:, long.shape[1] - before :])
    else:
        long = F.pad(x, (0, 0, before, after))
    found = long.unfold(1, size, 1).transpose(2, 3)
    if input.documents is not None:
        ids = F.pad(input.documents, (before, after), value=-1).unfold(1, size, 1)
        found = found * (ids == input.documents[..., None])[..., None]
    return found


class DepthwiseConvolution(nn.Module):
    """Depthwise convolution along the sequence, `size` taps.

    >>> x = torch.ones(1, 4, 2)
    >>> layer = DepthwiseConvolution(2, size=3, causal=True, name="convolution")
    >>> layer(x, LayerInput(x, x, False, torch.arange(4))).shape
    torch.Size([1, 4, 2])
    """

    def __init__(
        self, channels: int, *, size: int, causal: bool, name: str, bias: bool = False
    ) -> None:
        super().__init__()
        need_size("size", size)
        self.causal, self.name = causal, name
        self.weight = nn.Parameter(torch.randn(size, channels) * size**-0.5)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, input: LayerInput) -> Tensor:
        """Convolve x [b, n, c]."""
        near = taps(x, len(self.weight), input, self.name, causal=self.causal)
        y = (near * self.weight).sum(2)
        return y if self.bias is None else y + self.bias
