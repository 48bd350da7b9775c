"""What layers with a running state cost, and their weights written out."""

from __future__ import annotations

import time

import torch
from torch import Tensor
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


def time_ratio(layer: Layer, n: int, times: int, rows: int = 1) -> float:
    """How much more processor time `times` as many tokens take, per token: least of five runs."""
    taken = []
    for tokens in (n, n * times):
        x = torch.randn(rows, tokens, layer.dim)
        with torch.no_grad():
            layer(x)
            runs = []
            for _ in range(5):
                start = time.process_time()
                layer(x)
                runs.append(time.process_time() - start)
        taken.append(min(runs))
    return taken[1] / taken[0] / times


def step_time_ratio(layer: Layer, n: int, times: int, steps: int = 50) -> float:
    """How much more processor time a step takes after `times` as many tokens: the least of five."""
    taken = []
    for tokens in (n, n * times):
        memory = layer.memory()
        with torch.no_grad():
            layer(torch.randn(1, tokens, layer.dim), memory=memory)
            runs = []
            for _ in range(5):
                start = time.process_time()
                for _ in range(steps):
                    layer(torch.randn(1, 1, layer.dim), memory=memory)
                runs.append(time.process_time() - start)
        taken.append(min(runs))
    return taken[1] / taken[0]


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
