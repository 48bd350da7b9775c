"""What a head that does nothing scores, on the very text, length and support that was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import PerHead

RANDOM = 15


@dataclass(frozen=True)
class Chance:
    """A score without a reason: `uniform` of a head that looks at all keys alike, `random` the
    highest of some heads whose queries and keys are random.

    >>> Chance(0.03, 0.05).level, Chance(0.5, 0.5).above(0.75)
    (0.05, 0.5)
    """

    uniform: float
    random: float

    @property
    def level(self) -> float:
        """The higher of the two."""
        return max(self.uniform, self.random)

    def above(self, score: float) -> float:
        """Put a score on a scale where 0 is chance and 1 is all there can be."""
        left = 1 - self.level
        return (score - self.level) / left if left > 1e-9 else 0.0


def chance_call(call: Call) -> Call | None:
    """Make the same call with heads that do nothing: the first uniform, the others random.

    q and k become [b, 1 + RANDOM, n, 16]; the support stays, and with it who may attend to whom.
    None where heads have supports of their own: no one baseline holds for them.
    """
    support = call.rule.support
    if isinstance(support, PerHead) or support.extent()[1] != 1:
        return None
    draw = torch.Generator().manual_seed(0)
    shape = (call.b, 1 + RANDOM)
    q = torch.randn(*shape, call.n, 16, generator=draw).to(call.q.device)
    k = torch.randn(*shape, call.m, 16, generator=draw).to(call.q.device)
    q[:, 0] = 0
    rule = Rule(support=support, offset=call.rule.offset)
    at = call.k_positions
    if at is not None and at.dim() == 3:  # each key head holds keys of its own
        return None
    return call.replace(q=q, k=k, v=k, rule=rule, dropout=0.0)


def like(call: Call) -> Any:
    """What a baseline depends on; calls of one such key share it."""
    placed = None if not call.placed else id(call)
    return call.rule.support, call.rule.offset, call.b, call.n, call.m, placed


__all__ = ["RANDOM", "Chance", "chance_call", "like"]
