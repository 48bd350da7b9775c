"""Weights from keys and positions alone, feature by feature; queries only gate (AFT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import ShapeError, fail
from regard.core.method import method
from regard.core.partial import merge
from regard.core.score import Dot, LatticeBias, LowRankBias, RelativeBias, Score
from regard.core.support import Window
from regard.layers.arguments import need_divisor, need_size
from regard.layers.attention import Attention, joined, split
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.latent import averaged
from regard.layers.registry import register
from regard.run.api import partial


@register("aft")
@method("aft", call='import regard\nlayer = regard.layer("aft", 256, longest=512, causal=True)')
class AttentionFree(Attention):
    """Each feature averages its values with weights exp(key + learned bias of both positions).

    `y_t = sigmoid(q_t) * sum_s exp(k_s + w_ts) v_s / sum_s exp(k_s + w_ts)`, feature by feature,
    with `w = u v^T` of `rank` (AFT-full). Sequences are at most `longest`.

    >>> AttentionFree(32, longest=16)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(cross=False, left_padding=False, documents=False)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "longest": 128, "rank": 4}

    def __init__(self, dim: int, *, longest: int, rank: int = 128, **settings: Any) -> None:
        self.decides(settings, "head_dim", "value_dim", "kv_heads", "score", "support")
        need_size("longest", longest)
        need_size("rank", rank)
        super().__init__(dim, dim, head_dim=1, score=Dot(1.0), **settings)
        self.of_place = nn.Parameter(torch.randn(2, longest, rank) * rank**-0.5 * 0.1)

    def queries(self, x: Tensor) -> Tensor:
        """Return ones: no query changes a score."""
        return x.new_ones(len(x), self.heads, x.shape[1], 1)

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Gate by the queries."""
        mixed: Tensor = self.to_out(self.to_q(input.x).sigmoid() * joined(seen))
        return mixed

    def with_bias(self, call: Call) -> Call:
        """Add the position biases to the score."""
        start, longest = call.rule.offset, self.of_place.shape[1]
        if max(start + call.n, call.m) > longest:
            fail(
                ShapeError, "x", f"{max(start + call.n, call.m)} tokens", f"at most {longest}",
                "make the layer with a larger longest",
            )  # fmt: skip
        of_query, of_key = self.of_place
        bias = LowRankBias(
            of_query[None, None, start : start + call.n], of_key[None, None, : call.m]
        )
        return call.replace(rule=call.rule.replace(score=call.rule.score + bias))

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend with one feature a head."""
        return super().look(self.with_bias(call), input)


@register("aft_local")
class LocalAttentionFree(AttentionFree):
    """AFT whose position biases apply within `window` tokens only (AFT-local).

    Tokens further away still weigh exp(key).

    >>> LocalAttentionFree(32, longest=16, window=3)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "longest": 128, "rank": 4, "window": 4}

    def __init__(self, dim: int, *, longest: int, window: int, **settings: Any) -> None:
        self.decides(settings, "dropout")
        super().__init__(dim, longest=longest, **settings)
        self.near = Window(window)

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Merge the window, which has the biases, with the rest."""
        parts = []
        for one, support in ((self.with_bias(call), self.near), (call, ~self.near)):
            rule = one.rule.replace(support=one.rule.support & support)
            parts.append(partial(one.q, one.k, one.v, rule, k_positions=one.k_positions))
        return merge(*parts).out


@register("aft_conv")
class ConvolvedAttentionFree(AttentionFree):
    """AFT whose biases depend on distance: `heads` kernels of `window` taps (AFT-conv).

    Kernels are standardized, then scaled and shifted by learned parameters.

    >>> ConvolvedAttentionFree(32, heads=4, window=3)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(cross=False)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "window": 4}

    def __init__(self, dim: int, heads: int, *, window: int, **settings: Any) -> None:
        need_size("window", window)
        need_divisor("heads", heads, "channels of dim", dim)
        super().__init__(dim, longest=1, rank=1, **settings)
        del self.of_place
        self.kernels = nn.Parameter(torch.randn(heads, 2 * window - 1))
        self.scales = nn.Parameter(torch.stack((torch.full((heads,), 0.1), torch.zeros(heads))))

    def score(self) -> Score:
        """Add the bias of the distance, 0 beyond the window."""
        taps = self.kernels - self.kernels.mean(-1, keepdim=True)
        taps = taps / self.kernels.std(-1, keepdim=True).clamp_min(1e-6)
        taps = taps * self.scales[0][:, None] + self.scales[1][:, None]
        return self.bias_of(taps.repeat_interleave(self.heads // len(taps), 0))

    def bias_of(self, taps: Tensor) -> Score:
        """Add the bias of each distance, 0 beyond the window: taps [h, 2 window - 1]."""
        return super().score() + RelativeBias(nn.functional.pad(taps, (1, 1)))

    def look(self, call: Call, input: LayerInput) -> Tensor:
        """Attend with one feature a head."""
        return self.attend(call)


@register("aft_conv_2d")
class LatticeAttentionFree(ConvolvedAttentionFree):
    """AFT over images: biases depend on the offset in rows and columns (AFT-conv, 2-D).

    `grid` is the rows and columns of the tokens; each of `heads` kernels reaches `window` - 1 cells
    to every side, and is standardized over all its taps.

    >>> layer = LatticeAttentionFree(32, heads=4, grid=(3, 4), window=2)
    >>> layer(torch.randn(1, 12, 32)).shape
    torch.Size([1, 12, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        cross=False, padding=False, left_padding=False, documents=False, any_length=False
    )
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "grid": (6, 4), "window": 3}

    def __init__(
        self, dim: int, heads: int, *, grid: Sequence[int], window: int, **settings: Any
    ) -> None:
        super().__init__(dim, heads, window=window, **settings)
        self.grid = (int(grid[0]), int(grid[1]))
        side = 2 * window - 1
        self.kernels = nn.Parameter(torch.randn(heads, side * side))

    def bias_of(self, taps: Tensor) -> Score:
        """Add the bias of each offset, 0 beyond the window."""
        side = round(taps.shape[-1] ** 0.5)
        table = nn.functional.pad(taps.unflatten(-1, (side, side)), (1, 1, 1, 1))
        return Attention.score(self) + LatticeBias(table, self.grid)


@register("aft_simple")
class SimpleAttentionFree(Layer):
    """AFT without positions: running sums, one for each feature (AFT-simple).

    `y_t = sigmoid(q_t) * sum_{s<=t} exp(k_s) v_s / sum_{s<=t} exp(k_s)`

    >>> SimpleAttentionFree(32)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, constant_memory=True, linear=True
    )
    tiny: ClassVar[dict[str, Any]] = {"dim": 32}

    def __init__(
        self, dim: int, *, causal: bool = True, context_dim: int | None = None, bias: bool = False
    ) -> None:
        super().__init__(dim, causal=causal, context_dim=context_dim)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim, bias) for _ in range(4))

    def compute(self, input: LayerInput) -> Tensor:
        """Average each feature over the past, and gate."""
        seen = averaged(self.to_k(input.x).mT, split(self.to_v(input.x), self.dim), input)
        mixed: Tensor = self.to_out(self.to_q(input.x).sigmoid() * joined(seen))
        return mixed
