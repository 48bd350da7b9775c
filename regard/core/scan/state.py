"""What a scan remembers, and how the memories of two neighboring segments become one."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of


@dataclass(frozen=True, eq=False)
class ScanState:
    """Hold the memory left by the tokens of a segment, and how an older memory passes through it.

    A segment turns the memory `S` that enters it into `passage(S) + memory`. The passage is a
    decay (`log_decay`, per head or per channel) for additive scans and a matrix (`transition`)
    for the delta rule. The delta rule's scan leaves `transition` out, since few callers need it:
    `regard.core.scan.transition` makes it. Segments compose with `then`, which is associative.

    - `memory`: `[b, h, d, e]`, in float32 or float64
    - `log_decay`: `[b, h, 1]` or `[b, h, d]`, at most 0
    - `transition`: `[b, h, d, d]`

    >>> early = ScanState(torch.ones(1, 1, 2, 2), log_decay=torch.zeros(1, 1, 1))
    >>> late = ScanState(torch.ones(1, 1, 2, 2), log_decay=torch.full((1, 1, 1), -torch.inf))
    >>> early.then(late).memory.sum().item(), early.then(early).memory.sum().item()
    (4.0, 8.0)
    """

    memory: Tensor
    log_decay: Tensor | None = None
    transition: Tensor | None = None

    def then(self, later: ScanState) -> ScanState:
        """Compose with the segment that follows: the state both leave together."""
        if self.memory.shape != later.memory.shape:
            fail(
                ShapeError, "later", shape_of(later.memory),
                f"a memory of shape {list(self.memory.shape)}", "compose states of one layer",
            )  # fmt: skip
        if later.transition is not None:
            memory = later.transition @ self.memory + later.memory
            return ScanState(memory, transition=_passages(later.transition, self))
        if later.log_decay is None:
            fail(
                ValueRangeError, "later", "a state without log_decay and transition",
                "one that says how an older memory passes through its segment",
                "give it transition=regard.core.scan.transition(k, beta, ...) of that segment",
            )  # fmt: skip
        decay = later.log_decay.exp().unsqueeze(-1)
        memory = decay * self.memory + later.memory
        if self.transition is not None:
            return ScanState(memory, transition=decay * self.transition)
        total = None if self.log_decay is None else self.log_decay + later.log_decay
        return ScanState(memory, total)

    def tensors(self) -> dict[str, Tensor]:
        """Name every tensor held, for `torch.save` or safetensors; `ScanState(**it)` restores."""
        return _tensors(self)

    def detach(self) -> ScanState:
        """Cut the gradient history, as truncated backpropagation through time does."""
        return replace(self, **{name: x.detach() for name, x in self.tensors().items()})

    @property
    def nbytes(self) -> int:
        """Count the bytes of every tensor held."""
        return sum(x.nbytes for x in self.tensors().values())


@dataclass(frozen=True, eq=False)
class MomentumState:
    """Hold the memory and the running momentum of its updates.

    The pair passes through a later segment by a 2 x 2 matrix per head, `transition`
    `[b, h, 2, 2]`, acting on (memory, momentum). It is `None` after delta updates, whose passage
    is a matrix over channels as well.

    - `memory`, `momentum`: `[b, h, d, e]`

    >>> one = torch.ones(1, 1, 1, 1)
    >>> state = MomentumState(one, one, torch.tensor([[[[1.0, 0.5], [0.0, 0.5]]]]))
    >>> twice = state.then(state)
    >>> twice.memory.item(), twice.momentum.item()
    (2.5, 1.5)
    """

    memory: Tensor
    momentum: Tensor
    transition: Tensor | None = None

    def then(self, later: MomentumState) -> MomentumState:
        """Compose with the segment that follows: the state both leave together."""
        if self.memory.shape != later.memory.shape:
            fail(
                ShapeError, "later", shape_of(later.memory),
                f"a memory of shape {list(self.memory.shape)}", "compose states of one layer",
            )  # fmt: skip
        if later.transition is None:
            fail(
                ValueRangeError, "later", "a momentum state without transition",
                "the state of an additive segment (beta=None)",
                "carry the state through the later tokens: scan_momentum(..., state=early)",
            )  # fmt: skip
        pair = torch.stack((self.memory, self.momentum), dim=2)
        memory, momentum = torch.einsum("bhxy,bhyde->bhxde", later.transition, pair).unbind(2)
        total = None if self.transition is None else later.transition @ self.transition
        return MomentumState(memory + later.memory, momentum + later.momentum, total)

    def tensors(self) -> dict[str, Tensor]:
        """Name every tensor held; `MomentumState(**it)` restores."""
        return _tensors(self)

    def detach(self) -> MomentumState:
        """Cut the gradient history."""
        return replace(self, **{name: x.detach() for name, x in self.tensors().items()})

    @property
    def nbytes(self) -> int:
        """Count the bytes of every tensor held."""
        return sum(x.nbytes for x in self.tensors().values())


def _tensors(state: ScanState | MomentumState) -> dict[str, Tensor]:
    held = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: x for name, x in held.items() if x is not None}


def _passages(later: Tensor, early: ScanState) -> Tensor | None:
    """Compose the matrix passage `later` with whatever passage `early` has."""
    if early.transition is not None:
        return later @ early.transition
    return None if early.log_decay is None else later * early.log_decay.exp().unsqueeze(-2)
