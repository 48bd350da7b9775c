"""What an executor is: it can or says why not, it costs, it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regard.core.call import Call
from regard.core.partial import Partial
from regard.run.transforms import Transforms


@dataclass(frozen=True)
class Yes:
    """The executor can run the call; `note` says anything worth knowing."""

    note: str = ""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class No:
    """The executor cannot run the call, and why.

    >>> bool(No("needs a GPU"))
    False
    """

    reason: str

    def __bool__(self) -> bool:
        return False


Answer = Yes | No

# What one more kernel with some Python around it costs, in operations.
LAUNCH = 1e7


@dataclass(frozen=True)
class Cost:
    """Estimated work of a call: floating point operations, bytes moved, and extra bytes held."""

    flops: float
    bytes: float
    held: float = 0.0
    # How far from the device's peak this executor usually runs; 1 is the best kernel there is.
    slowness: float = 1.0

    @property
    def weight(self) -> float:
        """One number to compare executors by: work, at 10 operations a byte, times slowness."""
        return (self.flops + 10.0 * self.bytes) * self.slowness


class Executor(ABC):
    """A way to run a call. It must equal the reference: output, lse, every gradient.

    `reads` names the forms of keys that it reads as they are stored; where "dense" is among them,
    any other form can be made dense for it. What it computes it counts (`regard.run.counting`).
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset({"dense"})
    # Whether `weighed` returns the weights beside the output.
    weighs: ClassVar[bool] = False
    # Which transforms of torch.func it goes through.
    transforms: ClassVar[Transforms] = Transforms.FIRST

    @abstractmethod
    def can(self, call: Call) -> Answer:
        """Return whether it can run the call, or why not; the keys are of a form that it reads."""

    @abstractmethod
    def run(self, call: Call) -> Partial:
        """Run the call; sinks are left out, so that parts can still be merged."""

    def out(self, call: Call) -> Tensor:
        """Run a call of which only the output is wanted."""
        return self.run(call).out

    def weighed(self, call: Call) -> tuple[Partial, Tensor]:
        """Run a call of which the weights [b, h, n, m] are wanted too, sinks left out."""
        raise NotImplementedError

    def avoid_reason(self, call: Call) -> str:
        """Say why a plan should not choose it unless asked to, though it can; usually nothing."""
        return ""

    def cost(self, call: Call) -> Cost:
        """Estimate the work; by default that of writing the whole matrix out."""
        pairs = call.b * call.h * call.n * call.m
        size = call.q.element_size()
        moved = size * (call.q.numel() + call.k.numel() + call.v.numel())
        return Cost(2.0 * pairs * (call.d + call.e), moved + 24.0 * pairs, 16.0 * pairs, 2.0)
