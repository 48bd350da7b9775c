"""The rule of one layer of a served model, by where the queries of a call stand."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, SoftCap
from regard.core.score.base import Score
from regard.core.support import Causal, Everything, Support, Window
from regard.core.weigh import Softmax

# Rules with tensors that one layer keeps made.
_KEPT = 256


class LayerRules:
    """Rules of a layer: causal, with a scale and perhaps a window, soft cap, slopes and sinks.

    `slopes` [h] are those of ALiBi, `sinks` [h] logits that take a share of every softmax.

    >>> rules = LayerRules(0.125, window=64)
    >>> rules.of(1, 50), rules.of(8, 100)
    (Rule(score=Dot(0.125)), Rule(Causal() & Window(64), Dot(0.125), offset=92))
    """

    def __init__(
        self,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
        slopes: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        self.scale, self.window, self.soft_cap = scale, window, soft_cap
        self.slopes, self.sinks = slopes, sinks
        self._made: dict[tuple[int, bool], Rule] = {}

    def of(self, n: int, seen: int) -> Rule:
        """Return the rule of the newest `n` of `seen` tokens."""
        reaches_all = self.window is None or self.window >= seen
        # A single token may attend to all that is kept: then its position need not be known.
        everything = n == 1 and reaches_all and self.slopes is None
        offset = 0 if everything else seen - n
        if self.slopes is None and self.sinks is None:
            return _rule(self.scale, self.window, self.soft_cap, offset, everything)
        found = self._made.get((offset, everything))
        if found is None:
            plain = _rule(self.scale, self.window, self.soft_cap, offset, everything)
            score = plain.score if self.slopes is None else plain.score + Alibi(self.slopes)
            weigh = Softmax() if self.sinks is None else Softmax(sink=self.sinks)
            if len(self._made) >= _KEPT:
                self._made.clear()
            found = self._made[offset, everything] = plain.replace(score=score, weigh=weigh)
        return found

    def first_needed(self, n: int, seen: int) -> int:
        """Return the position of the first key that the newest `n` of `seen` tokens may need."""
        return 0 if self.window is None else max(0, seen - n - self.window + 1)


@lru_cache(maxsize=4096)
def _rule(
    scale: float, window: int | None, cap: float | None, offset: int, everything: bool
) -> Rule:
    support: Support = Causal() if window is None else Causal() & Window(window)
    score: Score = Dot(scale) if cap is None else Dot(scale) >> SoftCap(cap)
    return Rule(Everything() if everything else support, score, offset=offset)
