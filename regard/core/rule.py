"""A rule: what an attention does, apart from any tensor."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from itertools import count
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail, shape_of
from regard.core.score.base import Match, Score
from regard.core.score.matches import Dot, DotMatch
from regard.core.spans import Spans
from regard.core.support.bands import need_count
from regard.core.support.base import Everything, Support, common_shift
from regard.core.tilemap import TileMap
from regard.core.value import Value, value
from regard.core.weigh import Softmax, Weigh

_count = count()
_by_number: WeakValueDictionary[int, Rule] = WeakValueDictionary()
# What a rule that asks for no positions shares with the same rule at another offset.
_AT_ANY_OFFSET = (
    "support", "score", "weigh", "held", "traced", "_tensors", "position_free", "plain", "step_key",
)  # fmt: skip


@value
class Rule(Value):
    """Which pairs may attend, how much they match, and how scores become weights.

    `offset` is the position of the first query; decoding at position 9,000 is
    `rule.shift(9000)`.

    >>> from regard.core.support import Causal, Window
    >>> from regard.core.score import SoftCap
    >>> Rule(Causal() & Window(1024), Dot() >> SoftCap(30))
    Rule(Causal() & Window(1024), Dot() >> SoftCap(30))
    >>> Rule.of(Causal()) == Rule(support=Causal())
    True
    >>> Rule(Causal().shift(3)) == Rule(Causal()).shift(3)
    True
    """

    support: Support = Everything()
    score: Score = Dot()
    weigh: Weigh = Softmax()
    offset: int = 0

    number: ClassVar[int]
    traced: ClassVar[bool]
    held: ClassVar[tuple[Tensor, ...]]

    def __post_init__(self) -> None:
        for name, kind, example in (
            ("support", Support, "Causal()"),
            ("score", Score, "Dot()"),
            ("weigh", Weigh, "Softmax()"),
        ):
            if not isinstance(getattr(self, name), kind):
                fail(
                    RuleError,
                    name,
                    shape_of(getattr(self, name)),
                    f"a {kind.__name__}",
                    f"pass {name}={example}",
                )
        need_count("offset", self.offset, 0)
        # What only moves the support is the offset of the rule where no step asks for positions.
        asked = not self.support.moves or any(s.asks_positions for s in self.score.steps)
        later = 0 if asked else common_shift(self.support)
        if later > 0:
            object.__setattr__(self, "support", self.support.shift(-later))
            object.__setattr__(self, "offset", self.offset + later)
        # Compiled code cannot carry a rule, but it can carry a number, and tensors. A rule of a
        # module that is imported while a graph is traced is made outside of the graph.
        object.__setattr__(self, "number", next(_count))
        object.__setattr__(self, "traced", torch.compiler.is_dynamo_compiling())
        object.__setattr__(self, "held", self.tensors())
        _by_number[self.number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__post_init__()

    @staticmethod
    def numbered(number: int) -> Rule:
        """Return the rule of a number, which must still be alive."""
        return _by_number[number]

    @staticmethod
    def of(x: Rule | Support | Score | Weigh | None) -> Rule:
        """Build a rule of one of its parts; calls that name the same one share it."""
        if isinstance(x, Rule):
            return x
        if x is None:
            return _PLAIN
        if torch.compiler.is_compiling():
            return _of(x)
        if isinstance(x, Value) and not x.tensors() and not x.functions():
            return x.memo("rule", lambda: _of(x))
        return _of(x)

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Return for each pair whether query i (counted from the first) may attend to key j."""
        return self.support.allows(b, h, i + self.offset, j)

    def tiles(self, n_q: int, n_k: int, size: int | tuple[int, int] = 64, **where: Any) -> TileMap:
        """Return which tiles are empty, full or partial."""
        return self.support.tiles(n_q, n_k, size, offset=self.offset, **where)

    def horizon(self, i: int) -> Spans:
        """Return the key positions that query i or a later one can still need."""
        return self.support.horizon(i + self.offset)

    def shift(self, offset: int) -> Rule:
        """Return the same rule for queries that begin `offset` positions later.

        >>> from regard.core.support import Causal
        >>> Rule(Causal()).shift(9000).horizon(0)
        Spans(0..)
        """
        if offset == 0:
            return self
        if type(offset) is not int or offset < 0 or not self._shifts_alike:
            return self.replace(offset=self.offset + offset)
        # Each step of decoding shifts a rule: what positions do not change is taken over.
        made, kept = object.__new__(Rule), self.__dict__
        made.__dict__.update({name: kept[name] for name in _AT_ANY_OFFSET})
        made.__dict__.update(offset=self.offset + offset, number=next(_count))
        _by_number[made.number] = made
        return made

    @property
    def _shifts_alike(self) -> bool:
        """Whether nothing but the offset differs in a shifted rule, and all of it is at hand."""
        if self.tensors() or not self.position_free or torch.compiler.is_compiling():
            return False
        return not self.traced and self.plain is not None and self.step_key is not None

    @cached_property
    def position_free(self) -> bool:
        """Whether positions do not matter: every key may be attended to, and no step alters scores.

        >>> from regard.core.support import Causal
        >>> Rule().shift(9000).position_free, Rule(Causal()).position_free
        (True, False)
        """
        return isinstance(self.support, Everything) and not self.score.steps

    @cached_property
    def plain(self) -> bool:
        """Whether it is a softmax of scale q . k over all keys, and nothing else.

        >>> Rule().plain, Rule(weigh=Softmax(plus_one=True)).plain
        (True, False)
        """
        dot = type(self.score.match) is DotMatch
        return (
            self.position_free and dot and type(self.weigh) is Softmax and not self.weigh.has_sink
        )

    @cached_property
    def step_key(self) -> Hashable:
        """What a plan of a single query knows of the rule, where positions do not matter."""
        return self.score.signature, self.weigh.signature

    def draw(
        self, n: int, m: int | None = None, *, to: str | None = None, head: int = 0,
        overwrite: bool = False,
    ) -> str:  # fmt: skip
        """Draw the mask of the rule: as text, or as a picture where `to` names a file.

        A picture of the same mask that is there is replaced, anything else only where `overwrite`
        is true.

        >>> from regard.core.support import Causal, Window
        >>> print(Rule(Causal() & Window(2)).draw(4))
        #...
        ##..
        .##.
        ..##
        """
        from regard.core.draw import draw  # matplotlib, where it is needed

        return draw(self, n, n if m is None else m, to, head, overwrite)

    def _repr_html_(self) -> str:
        from regard.core.draw import notebook_view

        return notebook_view(self)


def _of(x: Support | Score | Weigh) -> Rule:
    if isinstance(x, Support):
        return Rule(support=x)
    if isinstance(x, Score):
        return Rule(score=x)
    if isinstance(x, Match):
        return Rule(score=Score(x))
    if isinstance(x, Weigh):
        return Rule(weigh=x)
    return fail(
        RuleError,
        "rule",
        shape_of(x),
        "a Rule, Support, Score or Weigh",
        "pass Causal(), or Rule(Causal(), Dot(), Softmax())",
    )


# The rule of a call that names none; calls share it, and what was derived from it.
_PLAIN = Rule()
