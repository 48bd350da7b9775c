"""Costs of a shrunk model: tokens per second at the prompt and when decoding, and memory."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.bench.measuring import Largest, seconds

ROUNDS = 5
DECODED = 16


@dataclass(frozen=True)
class Rate:
    """Tokens a second: the least, the median and the most of several rounds.

    >>> print(Rate(90.0, 100.0, 120.0))
    100 (90 to 120)
    >>> Rate(90.0, 100.0, 120.0).times(Rate(40.0, 50.0, 60.0))
    2.0
    """

    low: float
    middle: float
    high: float

    def times(self, other: Rate) -> float | None:
        """Return how many times as fast as another; None where the two spreads overlap."""
        if self.low <= other.high and other.low <= self.high:
            return None
        return self.middle / other.middle

    def __str__(self) -> str:
        return f"{self.middle:,.0f} ({self.low:,.0f} to {self.high:,.0f})"


@dataclass(frozen=True)
class RunningCosts:
    """Tokens a second of a prompt and of decoding after it, and the memory that this takes.

    `peak` is the most that was allocated on a GPU; on a CPU, which reports no such number, the
    bytes of the largest tensor.
    """

    prompt: Rate
    decode: Rate
    peak: int


@torch.no_grad()
def costs(model: Any, ids: Tensor, rounds: int = ROUNDS, steps: int = DECODED) -> RunningCosts:
    """Time a prompt ids [1, n], and `steps` tokens after it, one at a time.

    A first round, which compiles and caches, is not timed; memory is measured in it.
    """
    prompts, decodes = list[float](), list[float]()
    state: dict[str, Any] = {}

    def prompt() -> None:
        state["out"] = model(ids, use_cache=True)

    def decode() -> None:
        for _ in range(steps):
            out = state["out"]
            token = out.logits[:, -1:].argmax(-1)
            state["out"] = model(token, past_key_values=out.past_key_values, use_cache=True)

    if ids.is_cuda:
        torch.cuda.reset_peak_memory_stats(ids.device)
        prompt()
        decode()
        peak = torch.cuda.max_memory_allocated(ids.device)
    else:
        with Largest() as largest:
            prompt()
            decode()
        peak = largest.bytes
    for _ in range(rounds):
        prompts.append(ids.numel() / seconds(prompt))
        decodes.append(steps / seconds(decode))
    return RunningCosts(_rate(prompts), _rate(decodes), peak)


def _rate(many: list[float]) -> Rate:
    return Rate(*(round(x, 2) for x in (min(many), statistics.median(many), max(many))))
