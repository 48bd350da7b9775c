"""One layer in one mode, small, with inputs to try it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.layers.base import Layer
from regard.layers.registry import get

MODES = ("causal", "bidirectional", "cross")


@dataclass(frozen=True)
class Case:
    """A kind of layer in a mode: `causal`, `bidirectional` or `cross`."""

    name: str
    kind: type[Layer]
    mode: str

    def __str__(self) -> str:
        return f"{self.name}-{self.mode}"

    @property
    def tokens(self) -> int:
        """Tokens that the layer is tried with."""
        return self.kind.tiny_tokens

    def make(self, dtype: torch.dtype = torch.float64, **settings: Any) -> Layer:
        """Make the layer, the same each time, ready to be asked (not to be trained)."""
        torch.manual_seed(0)
        chosen = {**self.kind.tiny, "causal": self.mode == "causal", **settings}
        if self.mode == "cross":
            chosen.setdefault("context_dim", chosen["dim"])
        made = self.kind(**chosen)
        # Parameters that begin at zero (gates, biases, tables) would hide what they do.
        with torch.no_grad():
            for p in made.parameters():
                if p.is_floating_point():
                    p.add_(0.05 * torch.randn_like(p))
        return made.to(dtype).eval()

    def inputs(
        self, batch: int = 2, tokens: int | None = None, dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        """Draw x, and the context where there is one, of another length than x."""
        n = self.tokens if tokens is None else tokens
        dim = self.kind.tiny["dim"]
        drawn = {"x": torch.randn(batch, n, dim, dtype=dtype)}
        if self.mode == "cross":
            m = n + 5 if self.kind.can.any_length else n
            drawn["context"] = torch.randn(batch, m, dim, dtype=dtype)
        return drawn


def cases_of(name: str) -> list[Case]:
    """List a layer's modes: those that it says it can do."""
    kind = get(name)
    can = {"causal": kind.can.causal, "bidirectional": kind.can.bidirectional,
           "cross": kind.can.cross}  # fmt: skip
    return [Case(name, kind, mode) for mode in MODES if can[mode]]


def largest_gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of what is usual in b."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.square().mean().sqrt().clamp_min(1e-12))
