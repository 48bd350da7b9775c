"""A memory that learns while it reads, as context of attention or below it (Titans MAC and MAL)."""

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
from regard.layers.neural_memory import NeuralMemory, PersistentWindow
from regard.layers.registry import register
from regard.memories.layer import LayerMemory
from regard.run.api import attend


@register("titans_layer")
class MemoryAsLayer(Layer):
    """A window of attention over what a memory of everything gives (Titans, memory as a layer).

    `y = attention(norm(memory(x)))`; `persistent` learned tokens are always in sight.

    >>> MemoryAsLayer(32, heads=4, window=4)(torch.randn(1, 9, 32)).shape
    torch.Size([1, 9, 32])
    """

    can: ClassVar[Capabilities] = NeuralMemory.can
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "window": 4, "persistent": 3}

    def __init__(
        self, dim: int, heads: int, *, window: int = 256, persistent: int = 16,
        causal: bool = True, context_dim: int | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        self.decides(settings, "support")
        need_size("window", window)
        need_size("persistent", persistent)
        self.far = NeuralMemory(dim, heads)
        self.norm = nn.RMSNorm(dim)
        self.near = PersistentWindow(
            dim, heads, window=window, persistent=persistent, causal=causal, **settings
        )

    def compute(self, input: LayerInput) -> Tensor:
        """Read the memory, and attend to what it gave."""
        far = self.norm(self.far(input.x, **input.for_part("far", self.far)))
        seen: Tensor = self.near(far, **input.for_part("near", self.near))
        return seen


@register("titans_context")
class MemoryAsContext(Layer):
    """Attention in segments, to what a memory of earlier ones tells (Titans, memory as context).

    A segment of `segment` tokens x attends causally to persistent tokens, to what the memory as the
    segment before left it says of each token, h, and to itself; the output y teaches the memory,
    and is gated by what it says then: `norm(y) * sigmoid(norm(memory(y)))`.

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
        """Go on segment by segment; a call may begin and end inside one."""
        memory = LayerMemory("segments") if input.memory is None else input.memory
        said, start, n = [], 0, input.x.shape[1]
        while start < n:
            into = (input.offset + start) % self.segment
            stop = min(n, start + self.segment - into)
            padding = None if input.padding is None else input.padding[:, start:stop]
            said.append(self._piece(input.x[:, start:stop], into, padding, memory))
            start = stop
        return torch.cat(said, 1)

    def _piece(self, x: Tensor, into: int, padding: Tensor | None, memory: LayerMemory) -> Tensor:
        """Compute tokens x of one segment that begin `into` it."""
        far: LayerMemory = memory.of_kind("far", self.far.memory)
        if into == 0:  # what the segments before have left
            state = far.get("state")
            memory.keep("told", None if state is None else state.memory)
            memory.keep("near", self._always(x))
        # In one row: persistent tokens, then of each token what the memory says, and itself.
        both = torch.stack((self._told(x, memory.get("told")), x), 2).flatten(1, 2)
        first = self.persistent.shape[1] + 2 * into
        at = torch.arange(first, first + both.shape[1], device=x.device)
        places = at.expand(len(x), -1)
        if padding is not None:
            places = torch.where(padding.repeat_interleave(2, 1), places, -1)
        held = memory.get("near")
        k, v = (torch.cat(pair, 2) for pair in zip(held, self.near.keys(both), strict=False))
        there = torch.cat((held[2], places), 1)
        memory.keep("near", (k, v, there))
        seen = attend(self.near.queries(x), k, v, Causal(), q_positions=at[1::2], k_positions=there)
        near = self.near.to_out(joined(seen))
        read = self.far(near, padding=padding, memory=far)
        gated: Tensor = self.norms[0](near) * F.sigmoid(self.norms[1](read))
        return gated

    def _always(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys and values of the persistent tokens, which every token may attend to."""
        k, v = (
            each.expand(len(x), -1, -1, -1) for each in self.near.keys(self.persistent.to(x.dtype))
        )
        return k, v, torch.arange(k.shape[2], device=x.device).expand(len(x), -1)

    def _told(self, x: Tensor, held: Tensor | None) -> Tensor:
        """Return what a memory [b, h, d, e] says of tokens, [b, n, dim]: zeros where it is new."""
        if held is None:
            return torch.zeros_like(x)
        read = self.far.queries(x).to(held.dtype) @ held
        told: Tensor = self.far.to_out(joined(self.far.norm(read.to(x.dtype))))
        return told
