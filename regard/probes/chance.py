"""Chance levels: the score of heads that do nothing, on the same text, length and support."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import PerHead
from regard.core.survey import Survey
from regard.run.survey import survey_call

RANDOM = 15
# A statistic that holds a number for each pair: a probe that wants it has it made for itself.
LARGE = {"weights"}


@dataclass(frozen=True)
class Chance:
    """Chance scores: `uniform` of a head with equal weights, `random` the highest of random heads.

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
        """Put a score on a scale where 0 is chance and 1 the maximum."""
        left = 1 - self.level
        return (score - self.level) / left if left > 1e-9 else 0.0


def chance_call(call: Call) -> Call | None:
    """Return the same call with heads that do nothing: the first uniform, the others random.

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
    """Return what a baseline depends on; calls of one such key share it."""
    placed = None if not call.placed else id(call)
    return call.rule.support, call.rule.offset, call.b, call.n, call.m, placed


@dataclass
class Baselines:
    """Heads that do nothing, surveyed once for all probes of one forward.

    `want` is all that these probes want; a survey of everything at once holds the same numbers as
    one for each, in one sweep.
    """

    want: Sequence[str] = ()
    _found: dict[Any, tuple[Call | None, Survey | None]] = field(default_factory=dict, repr=False)
    # Calls identified by id(), kept alive so that no other call gets the same id.
    _placed: list[Call] = field(default_factory=list, repr=False)

    @staticmethod
    def of(wants: Iterable[Sequence[str]]) -> Baselines:
        """Unite what probes want.

        >>> Baselines.of([("lse",), ("entropy", "lse"), ("weights",)]).want
        ('lse', 'entropy')
        """
        return Baselines(tuple(dict.fromkeys(x for want in wants for x in want if x not in LARGE)))

    def of_call(self, call: Call, want: Sequence[str]) -> tuple[Call | None, Survey | None]:
        """Return the idle call like `call`, and its survey where something is wanted."""
        key = like(call)
        if key not in self._found:
            self._placed += [call] if call.placed else []
            idle = chance_call(call)
            shared = None if idle is None or not self.want else survey_call(idle, self.want)
            self._found[key] = idle, shared
        idle, survey = self._found[key]
        if idle is None or not want:
            return idle, None
        return idle, survey if set(want) <= set(self.want) else survey_call(idle, want)
