"""One backbone for every layer: the same embedding, blocks and head around the layer under test."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from regard.bench.specs import make_layer
from regard.core.errors import RuleError, fail
from regard.layers.attention import Attention
from regard.layers.positions import Learned, Sinusoidal
from regard.layers.stack import Block, Stack
from regard.tasks import Batch, Task, Tokens
from regard.tasks.base import Kind

POSITIONS = ("learned", "sinusoidal", "none")


class Backbone(nn.Module):
    """Blocks around one kind of layer, built for a task and a pattern.

    For self-attention the layer is the mixer of each block. For cross-attention the mixer is plain
    attention, and the layer attends to the context.

    >>> from regard.tasks import task
    >>> job = task("mqar")
    >>> model = Backbone("gqa", job, "cs", dim=32, heads=4, depth=2)
    >>> model(job.batch(3)).shape
    torch.Size([3, 64, 256])
    """

    def __init__(
        self, spec: str, task: Task, pattern: str, *, dim: int = 64, heads: int = 4,
        depth: int = 2, positions: str = "sinusoidal",
    ) -> None:  # fmt: skip
        super().__init__()
        if positions not in POSITIONS:
            fail(
                RuleError, "positions", repr(positions), f"one of {', '.join(POSITIONS)}",
                "for positions of a layer pass LAYER:position=rotary and positions=none",
            )  # fmt: skip
        if pattern not in task.patterns:
            fail(
                RuleError, "pattern", repr(pattern),
                f"one that {task.name} is posed in: {', '.join(task.patterns)}", "choose another",
            )  # fmt: skip
        crosses = task.contexts is not None
        longest = max(test.longest for test in task.tests().values())

        def block() -> Block:
            layer = make_layer(spec, pattern, dim, heads, longest)
            if not crosses:
                return Block(layer)
            return Block(Attention(dim, heads=heads, causal=pattern == "cc"), cross=layer)

        self.embed = _reader(task.inputs, dim)
        self.embed_context = _reader(task.contexts, dim) if task.contexts is not None else None
        make: Any = {
            "learned": lambda: Learned(dim, longest),
            "sinusoidal": lambda: Sinusoidal(dim),
        }
        self.places = make[positions]() if positions in make else None
        self.stack = Stack([block() for _ in range(depth)])
        self.norm = nn.RMSNorm(dim)
        kind = task.outputs
        self.head = nn.Linear(dim, kind.count if isinstance(kind, Tokens) else kind.width)

    def forward(self, batch: Batch) -> Tensor:
        """Return outputs at every position: [b, n, classes or numbers]."""
        context = None
        if self.embed_context is not None and batch.context is not None:
            context = self._placed(self.embed_context(batch.context))
        answered: Tensor = self.head(
            self.norm(self.stack(self._placed(self.embed(batch.x)), context))
        )
        return answered

    def _placed(self, x: Tensor) -> Tensor:
        if self.places is None:
            return x
        codes: Tensor = self.places(torch.arange(x.shape[1], device=x.device))
        return x + codes.to(x.dtype)


def _reader(kind: Kind, dim: int) -> nn.Module:
    """Build an embedding of tokens, or a linear map of numbers."""
    if isinstance(kind, Tokens):
        return nn.Embedding(kind.count, dim)
    return nn.Linear(kind.width, dim)


def parameters(model: nn.Module) -> int:
    """Count the parameters of a model."""
    return sum(p.numel() for p in model.parameters())


def width_for(target: float, spec: str, task: Task, pattern: str, *, heads: int, depth: int) -> int:
    """Find the width, a multiple of the heads, whose parameter count is nearest to `target`."""

    def count(dim: int) -> int:
        with torch.device("meta"):
            return parameters(
                Backbone(spec, task, pattern, dim=dim, heads=heads, depth=depth, positions="none")
            )

    step = 2 * heads
    low, high = 1, 2
    while count(high * step) < target and high < 4096:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle * step) < target else (low, middle)
    best = min((low, high), key=lambda k: abs(math.log(count(k * step) / target)))
    return best * step
