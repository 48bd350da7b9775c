"""Positions of kept keys, written out only when asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.readable import can_be_read


@dataclass(frozen=True)
class Positions:
    """Positions of slots of which the last hold the newest tokens; written out only when asked.

    `written` [b, g, w] are those of the first w slots, -1 at empty ones; the others are consecutive
    and end at `seen - 1`. `full` says that no slot is empty.

    >>> Positions(torch.tensor([[[0, 5]]]), 9, (1, 1, 4), True).tensor().tolist()
    [[[0, 5, 7, 8]]]
    """

    written: Tensor | None
    seen: int
    shape: tuple[int, int, int]
    full: bool
    device: torch.device | None = None

    def tensor(self) -> Tensor:
        """Return the positions [b, g, m]."""
        b, g, m = self.shape
        device = self.device if self.written is None else self.written.device
        first = m if self.written is None else m - self.written.shape[2]
        line = torch.arange(self.seen - first, self.seen, device=device).expand(b, g, -1)
        return line if self.written is None else torch.cat((self.written.long(), line), 2)


@dataclass(frozen=True)
class Later:
    """Positions that are written out only when asked: `make()` returns them."""

    make: Callable[[], Tensor]
    full: bool

    def tensor(self) -> Tensor:
        """Return the positions."""
        return self.make()


At = Tensor | Positions | Later | None


def written(at: At) -> Tensor | None:
    """Write positions out, if there are any."""
    return at if at is None or isinstance(at, Tensor) else at.tensor()


def is_full(at: At) -> bool:
    """Return whether every slot holds a real key; off the CPU, or traced, it is not looked at."""
    if at is None or not isinstance(at, Tensor):
        return at is None or at.full
    return at.device.type == "cpu" and can_be_read(at) and bool((at >= 0).all())
