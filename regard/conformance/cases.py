"""One layer in one mode, small, with inputs to try it on, and which laws it must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from regard.layers.base import Layer
from regard.layers.registry import get, names

MODES = ("causal", "bidirectional", "cross")
# Equal, in float64: a gap this small, in units of what is usual.
EQUAL = 1e-6
Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Needs:
    """Which cases a law is about: those of these modes that declare these capabilities."""

    modes: tuple[str, ...] = MODES
    can: tuple[str, ...] = ()

    def kind(self, kind: type[Layer]) -> bool:
        """Return whether a kind of layer declares what the law needs."""
        return all(getattr(kind.can, ability) for ability in self.can)

    def case(self, case: Case) -> bool:
        """Return whether a case is one of those that the law is about."""
        return case.mode in self.modes and self.kind(case.kind)


def needs(*can: str, modes: tuple[str, ...] = MODES) -> Callable[[Test], Test]:
    """Run a law over the cases that declare capabilities `can`, in `modes`; others are left out.

    >>> @needs("decode", modes=("causal",))
    ... def test_something(case): ...
    >>> needed(test_something)
    Needs(modes=('causal',), can=('decode',))
    """

    def keep(test: Test) -> Test:
        test.__dict__["needs"] = Needs(modes, can)
        return test

    return keep


def needed(test: Callable[..., Any]) -> Needs:
    """Return what a law needs of a case: everything passes where nothing was declared."""
    found: Needs = getattr(test, "needs", Needs())
    return found


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
        """Build the layer, the same each time, ready to be asked (not to be trained)."""
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


def cases_of_kind(kind: type[Layer]) -> list[Case]:
    """List the modes of a class of layers: those that it declares."""
    return cases_of(
        next(
            (name for name in names() if get(name) is kind),
            f"{kind.__module__}:{kind.__qualname__}",
        )
    )


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
