"""What layers with a running state cost, and their weights written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from regard.layers.base import Layer
from regard.layers.inputs import LayerInput


def scene_of(x: Tensor) -> LayerInput:
    """Put tokens in a scene without anything else."""
    return LayerInput(x, x, False, torch.arange(x.shape[1]))


def flops_ratio(layer: Layer, n: int = 512, times: int = 8) -> float:
    """How much more work `times` as many tokens are, per token."""
    counts = []
    for tokens in (n, n * times):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(torch.randn(1, tokens, layer.dim))
        counts.append(counter.get_total_flops())
    return counts[1] / counts[0] / times


class MovedBytes(TorchDispatchMode):
    """Count the bytes that operators read and write; views move none.

    With the operations it is what the time of a layer is made of, and no clock: the same on a
    busy machine as on a quiet one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the base has no types
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count what it is given and what it returns."""
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            both = tree_leaves((args, kwargs, made))
            self.bytes += sum(x.numel() * x.element_size() for x in both if isinstance(x, Tensor))
        return made


def traffic_ratio(layer: Layer, n: int = 512, times: int = 8) -> float:
    """How many more bytes `times` as many tokens read and write, per token."""
    counts = []
    for tokens in (n, n * times):
        with torch.no_grad(), MovedBytes() as counter:
            layer(torch.randn(1, tokens, layer.dim))
        counts.append(counter.bytes)
    return counts[1] / counts[0] / times


def step_cost(layer: Layer, after: int) -> tuple[int, int]:
    """Operations, and bytes read and written, of decoding one token `after` so many."""
    memory, x = layer.memory(), torch.randn(1, after + 1, layer.dim)
    with torch.no_grad():
        layer(x[:, :-1], memory=memory)
        with FlopCounterMode(display=False) as flops, MovedBytes() as traffic:
            layer(x[:, -1:], memory=memory)
    return flops.get_total_flops(), traffic.bytes


def decode_bytes(layer: Layer, steps: int) -> int:
    """Bytes of a layer's memory after some tokens."""
    memory = layer.memory()
    with torch.no_grad():
        for _ in range(steps):
            layer(torch.randn(1, 1, layer.dim), memory=memory)
    return memory.nbytes


def written_out(weights: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Divide positive weights [b, h, n, n] by their row sums and average v."""
    if causal:
        weights = weights.tril()
    return weights / weights.sum(-1, keepdim=True) @ v
