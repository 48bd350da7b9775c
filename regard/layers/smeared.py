"""Attention whose keys hold some of the key of the token before (smeared keys)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.keys import Dense
from regard.core.method import method
from regard.layers.attention import Attention, joined, split
from regard.layers.convolution import taps
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("smeared_keys")
@method(
    "induction_heads",
    call='import regard\nlayer = regard.layer("smeared_keys", 256, heads=8, position="rotary")',
)
class SmearedKeys(Attention):
    """Each key head mixes every key with that of the token before, by one trained share.

    `k_j <- sigmoid(a) k_j + (1 - sigmoid(a)) k_{j-1}`, where the first token of a sequence, and of
    a packed document, has zeros before it. A query can so find the token that followed an earlier
    copy of its own within one layer, which plain attention needs two for. Keys are mixed before
    positions turn them. `a` starts at 0, half and half; at large `a` this is plain attention. A
    decoder keeps one key more, the last before it was mixed.

    >>> SmearedKeys(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, multihead_weights=True
    )

    def __init__(self, dim: int, heads: int, *, causal: bool = True, **settings: Any) -> None:
        super().__init__(dim, heads, causal=causal, **settings)
        self.own = nn.Parameter(torch.zeros(self.kv_heads))

    def read(self, input: LayerInput) -> tuple[Tensor, Dense]:
        """Mix the keys, then append them to those of the memory."""
        k, v = self.keys(input.context)
        k = self.norm_k(k) if self._normed else k
        near = taps(joined(k), 2, input, "key_before", causal=True)
        before, own = (split(x, self.kv_heads) for x in near.unbind(2))
        share = self.own.sigmoid()[:, None, None].to(k)
        return self.positioned_and_kept(
            self.normed_queries(input), share * own + (1 - share) * before, v, input
        )
