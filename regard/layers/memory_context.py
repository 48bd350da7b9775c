"""A memory that learns at test time, as context of attention or below it (Titans MAC and MAL)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.support import Causal
from regard.layers.arguments import need_size
from regard.layers.attention import Attention, joined
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.neural_memory import NeuralMemory, PersistentWindow, Titans
from regard.layers.registry import register
from regard.memories.layer import LayerMemory
from regard.run.api import attend


@register("titans_layer")
class MemoryAsLayer(Layer):
    """A window of attention over the outputs of a neural memory (Titans, memory as a layer).

    `y = attention(norm(memory(x)))`; every query attends to `persistent` learned tokens.

    >>> MemoryAsLayer(32, heads=4, window=4)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    can: ClassVar[Capabilities] = NeuralMemory.can
    tiny: ClassVar[dict[str, Any]] = Titans.tiny

    def __init__(
        self, dim: int, heads: int, *, window: int = 256, persistent: int = 16,
        causal: bool = True, context_dim: int | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        self.far = NeuralMemory(dim, heads)
        self.norm = nn.RMSNorm(dim)
        self.near = PersistentWindow(
            dim, heads, window=window, persistent=persistent, causal=causal, **settings
        )

    def compute(self, input: LayerInput) -> Tensor:
        """Read the memory, and attend over its outputs."""
        far = self.norm(self.far(input.x, **input.for_part("far", self.far)))
        out: Tensor = self.near(far, **input.for_part("near", self.near))
        return out


@register("titans_context")
class MemoryAsContext(Layer):
    """Attention in segments, to itself and to a neural memory (Titans, memory as context).

    A segment of `segment` tokens x attends causally to persistent tokens, to h, the memory's output
    for each token before the segment is learned, and to itself; the output y trains the memory,
    and is gated by its new output: `norm(y) * sigmoid(norm(memory(y)))`.

    >>> MemoryAsContext(32, heads=4, segment=4)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        bidirectional=False, cross=False, left_padding=False, documents=False,
        constant_memory=True, linear=True,
    )  # fmt: skip
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "segment": 4, "persistent": 3}

    def __init__(
        self, dim: int, heads: int, *, segment: int = 256, persistent: int = 16,
        causal: bool = True, context_dim: int | None = None, bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("segment", segment)
        need_size("persistent", persistent)
        self.segment = segment
        self.near = Attention(dim, heads, causal=True, bias=bias)
        self.far = NeuralMemory(dim, heads)
        self.persistent = nn.Parameter(0.02 * torch.randn(1, persistent, dim))
        self.norms = nn.ModuleList((nn.RMSNorm(dim), nn.RMSNorm(dim)))

    def compute(self, input: LayerInput) -> Tensor:
        """Run segment by segment; a call may begin and end inside one."""
        memory = LayerMemory("segments") if input.memory is None else input.memory
        outs, start, n = [], 0, input.x.shape[1]
        while start < n:
            into = (input.offset + start) % self.segment
            stop = min(n, start + self.segment - into)
            padding = None if input.padding is None else input.padding[:, start:stop]
            outs.append(self._piece(input.x[:, start:stop], into, padding, memory))
            start = stop
        return torch.cat(outs, 1)

    def _piece(self, x: Tensor, into: int, padding: Tensor | None, memory: LayerMemory) -> Tensor:
        """Compute tokens x of one segment, `into` of which came before."""
        far: LayerMemory = memory.of_kind("far", self.far.memory)
        if into == 0:  # the memory as the segments before left it
            state = far.get("state")
            memory.keep("before", None if state is None else state.memory)
            memory.keep("near", self._persistent(x))
        # In one row: persistent tokens, then for each token the memory's output and itself.
        both = torch.stack((self._read(x, memory.get("before")), x), 2).flatten(1, 2)
        first = self.persistent.shape[1] + 2 * into
        at = torch.arange(first, first + both.shape[1], device=x.device)
        places = at.expand(len(x), -1)
        if padding is not None:
            places = torch.where(padding.repeat_interleave(2, 1), places, -1)
        held = memory.get("near")
        k, v = (torch.cat(pair, 2) for pair in zip(held, self.near.keys(both), strict=False))
        k_at = torch.cat((held[2], places), 1)
        memory.keep("near", (k, v, k_at))
        seen = attend(self.near.queries(x), k, v, Causal(), q_positions=at[1::2], k_positions=k_at)
        near = self.near.to_out(joined(seen))
        read = self.far(near, padding=padding, memory=far)
        gated: Tensor = self.norms[0](near) * F.sigmoid(self.norms[1](read))
        return gated

    def _persistent(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys and values of the persistent tokens, which every token may attend to."""
        k, v = (
            each.expand(len(x), -1, -1, -1) for each in self.near.keys(self.persistent.to(x.dtype))
        )
        return k, v, torch.arange(k.shape[2], device=x.device).expand(len(x), -1)

    def _read(self, x: Tensor, held: Tensor | None) -> Tensor:
        """Read a memory [b, h, d, e] for tokens x: [b, n, dim], zeros where it is new."""
        if held is None:
            return torch.zeros_like(x)
        read = self.far.queries(x).to(held.dtype) @ held
        out: Tensor = self.far.to_out(joined(self.far.norm(read.to(x.dtype))))
        return out
