"""Layers with a running state: linear attention, retention, gated linear attention, delta rule.

`queries` and `keys` return q, k, v as in attention, after a feature map where there is one; `rates`
returns how the state decays and is written; `look` scans, or sums over the whole sequence in a
bidirectional layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.autocast import autocast_alike
from regard.core.features import elu_plus_one, unit
from regard.core.scan import read as read_sum
from regard.core.scan import starts, summed, unordered, with_ones
from regard.layers.arguments import need_divisor, need_size
from regard.layers.attention import joined, split
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register
from regard.memories.layer import LayerMemory
from regard.run.scanning import scan


class Recurrent(Layer):
    """Heads that read a running sum of keys and values, in time linear in the length.

    `S_t = decay_t S_{t-1} + k_t v_t^T`, `o_t = q_t S_t`: subclasses choose features and rates.

    >>> layer = Linear(32, heads=4, causal=True)
    >>> layer(torch.randn(2, 10, 32)).shape
    torch.Size([2, 10, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        cross=False, bidirectional=False, constant_memory=True, linear=True
    )
    # Divide by the sum of weights, kept at least this far from 0; None does not normalize.
    normalize: ClassVar[float | None] = None
    # Tokens at a time, where features are too many to hold them all.
    piece: ClassVar[int | None] = None

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        value_dim: int | None = None,
        context_dim: int | None = None,
        causal: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("heads", heads)
        if head_dim is None:
            need_divisor("heads", heads, "channels of dim (or give head_dim)", dim)
        self.heads = heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.make_projections(bias)

    def make_projections(self, bias: bool) -> None:
        """Build the weights that `queries`, `keys` and `mix` read."""
        self.to_q = nn.Linear(self.dim, self.heads * self.head_dim, bias)
        self.to_k = nn.Linear(self.context_dim, self.heads * self.head_dim, bias)
        self.to_v = nn.Linear(self.context_dim, self.heads * self.value_dim, bias)
        self.to_out = nn.Linear(self.heads * self.value_dim, self.dim, bias)

    def features(self, x: Tensor) -> Tensor:
        """Map queries or keys [b, h, n, d] to features, whose products are the weights."""
        return x

    def queries(self, x: Tensor) -> Tensor:
        """Build q [b, h, n, d], features included."""
        return self.features(split(self.to_q(x), self.heads))

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Build k [b, h, m, d], features included, and v [b, h, m, e]."""
        k, v = split(self.to_k(context), self.heads), split(self.to_v(context), self.heads)
        return self.features(k), v

    def rates(self, input: LayerInput) -> dict[str, Any]:
        """Return the decay and write strength of the state: arguments of `regard.scan`."""
        return {}

    def look(self, q: Tensor, k: Tensor, v: Tensor, input: LayerInput) -> Tensor:
        """Read the running sums, or the sum over the whole sequence: [b, h, n, e]."""
        memory, reset = input.memory, input.documents
        q, k, v = autocast_alike(q, k, v)
        if not self.causal:
            return unordered(
                q, k, v,
                keep=input.padding,
                documents=input.documents,
                key_documents=input.context_documents,
                normalize=self.normalize,
            )  # fmt: skip
        seen, state = scan(
            q, k, v,
            state=None if memory is None else memory.get("state"),
            keep=input.padding,
            reset=None if reset is None else starts(reset),
            normalize=self.normalize,
            **self.rates(input),
        )  # fmt: skip
        if memory is not None:
            memory.keep("state", state)
        return seen

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Join the heads [b, h, n, e]: y [b, n, dim]."""
        mixed: Tensor = self.to_out(joined(seen))
        return mixed

    def compute(self, input: LayerInput) -> Tensor:
        """Project, scan and mix."""
        alone = self.causal and not input.crosses and input.documents is None
        if self.piece is not None and alone and input.x.shape[1] > self.piece:
            carried = LayerMemory("pieces") if input.memory is None else input.memory
            return torch.cat([self.compute(part) for part in input.pieces(self.piece, carried)], 1)
        return self.read(self.queries(input.x), self.keys, input)

    def read(
        self, q: Tensor, keys: Callable[[Tensor], tuple[Tensor, Tensor]], input: LayerInput
    ) -> Tensor:
        """Read the sums of `keys(context)` with q [b, h, n, d]: y; a context is summed once."""
        memory = input.memory
        if not input.crosses or memory is None:
            return self.mix(self.look(q, *keys(input.context), input), input)
        if not memory.seen:
            k, v = keys(input.context)
            v = v if self.normalize is None else with_ones(v)
            memory.keep("context", summed(k, v, keep=input.padding))
        return self.mix(read_sum(q, memory.get("context"), self.normalize), input)

    def describe(self) -> str:
        """Describe the layer in one line."""
        sizes = f"{self.dim}, heads={self.heads}, d={self.head_dim}, e={self.value_dim}"
        return f"{type(self).__name__}({sizes}{', causal' if self.causal else ''})"


@register("linear")
class Linear(Recurrent):
    """Linear attention: positive features of q and k in place of the exponential of their product.

    >>> Linear(32, heads=4, causal=False)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(constant_memory=True, linear=True)
    normalize: ClassVar[float | None] = 1e-6

    def features(self, x: Tensor) -> Tensor:
        """Return `elu + 1`."""
        return elu_plus_one(x)


@register("retention")
class Retention(Recurrent):
    """Retention: each head decays at a fixed rate of its own; heads are normalized and gated.

    >>> Retention(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    log_decay: Tensor

    def __init__(self, dim: int, heads: int, **settings: Any) -> None:
        super().__init__(dim, heads, **settings)
        powers = torch.linspace(math.log(1 / 32), math.log(1 / 512), heads)
        self.register_buffer("log_decay", torch.log1p(-powers.exp()), persistent=False)
        self.norm = nn.RMSNorm(self.value_dim)
        self.to_gate = nn.Linear(dim, heads * self.value_dim, bias=False)

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the keys by the root of the head size."""
        k, v = super().keys(context)
        return k * self.head_dim**-0.5, v

    def rates(self, input: LayerInput) -> dict[str, Any]:
        """Return the decay of each head."""
        return {"log_decay": self.log_decay}

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Normalize each head, gate and project."""
        mixed: Tensor = self.to_out(joined(self.norm(seen)) * F.silu(self.to_gate(input.x)))
        return mixed


@register("gla")
class GatedLinear(Retention):
    """Gated linear attention: each channel decays at a rate computed from the token.

    >>> GatedLinear(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    def __init__(self, dim: int, heads: int, *, rank: int = 16, **settings: Any) -> None:
        super().__init__(dim, heads, **settings)
        del self.log_decay
        self.to_decay = nn.Sequential(
            nn.Linear(dim, rank, bias=False), nn.Linear(rank, heads * self.head_dim)
        )

    def rates(self, input: LayerInput) -> dict[str, Any]:
        """Return the decay `sigmoid(x W) ** (1 / 16)`, channel by channel."""
        return {"log_decay": split(F.logsigmoid(self.to_decay(input.x)) / 16, self.heads)}


@register("delta")
class Delta(Recurrent):
    """Delta rule: write only what the memory does not return yet, with a strength of the token.

    >>> Delta(32, heads=4)(torch.randn(1, 6, 32)).shape
    torch.Size([1, 6, 32])
    """

    def __init__(self, dim: int, heads: int, **settings: Any) -> None:
        super().__init__(dim, heads, **settings)
        self.to_strength = nn.Linear(dim, heads, bias=False)
        self.norm = nn.RMSNorm(self.value_dim)

    def features(self, x: Tensor) -> Tensor:
        """Scale queries and keys to length 1, without which the rule diverges."""
        return unit(F.silu(x))

    def rates(self, input: LayerInput) -> dict[str, Any]:
        """Return the write strength `sigmoid(x W)`."""
        return {"beta": self.to_strength(input.x).sigmoid().transpose(1, 2)}

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Normalize each head, and project."""
        mixed: Tensor = self.to_out(joined(self.norm(seen)))
        return mixed
