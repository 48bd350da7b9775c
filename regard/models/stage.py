"""Stages: middleware for attention.

A call comes out of a model, passes `before` of each stage in order, is run, and passes `after` in
reverse order. A stage may also ask for a survey, or (tiny inputs only) for the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, fail, shape_of
from regard.core.partial import Partial
from regard.models.site import Place, Site, Sites

PARTS = ("q", "k", "v", "bias", "prob", "out")


class Stage:
    """Base of everything that looks at attention or changes it; override what you need.

    `want` names survey statistics, which arrive in `see`; `wants_weights` asks for the matrix,
    which arrives in `see_weights` [b, h, n, m]. `where` chooses sites (see `Place.of`).

    >>> class Louder(Stage):
    ...     def after(self, call, partial):
    ...         return partial._replace(out=2 * partial.out)
    >>> Louder(where=range(4)).where.layers == frozenset(range(4))
    True
    """

    want: Sequence[str] = ()
    wants_weights: bool = False
    # Extra arguments of `regard.survey`; stages that share a pass must agree on them.
    survey_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, where: Any = None) -> None:
        self.where = Place.of(where)

    @property
    def name(self) -> str:
        """Name in errors."""
        return type(self).__name__

    def begin(self, model: Any, sites: Sites) -> None:
        """Get ready for a model; `sites` are those chosen by `where`."""

    def end(self) -> None:
        """Let go of the model."""

    def before(self, call: Call) -> Call:
        """Change the call before it is run."""
        return call

    def after(self, call: Call, partial: Partial) -> Partial:
        """Change what came of it: out [b, h, n, e] and lse [b, h, n]."""
        return partial

    def stand_in(self, call: Call) -> Tensor | None:
        """Run a call alone, or None: asked of a stage that no other stage stands beside.

        What it gives must be what `before`, the run and `after` would give, only sooner. The site
        of the call does not know its moment yet: ask `regard.models.engine.timed(call)`.
        """
        return None

    def observe(self, call: Call) -> None:
        """Look at the call as it will be run, after every stage has had its say."""

    def see(self, site: Site, survey: Any) -> None:
        """Take the survey of one call, after `observe`."""

    def see_weights(self, site: Site, weights: Tensor) -> None:
        """Take the weights [b, h, n, m] of one call."""


class Null(Stage):
    """Does nothing: with it, a model must give what it gives without it.

    >>> Null().name
    'Null'
    """


class Edit(Stage):
    """Change one thing on purpose: `fn` gets the part named by `stage`, and gives it changed.

    q [b, h, n, d], k [b, g, m, d], v [b, g, m, e], bias (scores [b, h, n, m] before they are
    weighed, any tile of them), prob [b, h, n, m] (tiny inputs only) or out [b, h, n, e].
    With heads chosen, `fn` gets these heads alone (for k and v: key heads).

    >>> silent = Edit("out", lambda out: 0 * out, where={"layers": 3, "heads": [0, 2]})
    """

    def __init__(self, stage: str, fn: Callable[[Tensor], Tensor], where: Any = None) -> None:
        super().__init__(where)
        if stage not in PARTS:
            fail(RuleError, "stage", repr(stage), f"one of {PARTS}", "name the part to edit")
        if not callable(fn):
            fail(RuleError, "fn", shape_of(fn), "a function of a tensor", "pass a function")
        self.stage, self.fn = stage, fn

    @property
    def name(self) -> str:
        """Name in errors."""
        return f"Edit({self.stage!r})"

    def _edited(self, x: Tensor) -> Tensor:
        heads = self.where.heads
        if heads is None:
            return self.fn(x)
        index = list(heads)
        new = x.clone()
        new[:, index] = self.fn(x[:, index])
        return new

    def before(self, call: Call) -> Call:
        """Edit q, k, v or the scores."""
        if self.stage in ("q", "k", "v"):
            return call.replace(**{self.stage: self._edited(getattr(call, self.stage))})
        if self.stage == "bias":
            from regard.core.score import ScoreStep

            step = ScoreStep(self._edited_scores)
            return call.replace(rule=call.rule.replace(score=call.rule.score >> step))
        return call

    def _edited_scores(self, s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if self.where.heads is None:
            return self.fn(s)
        chosen = sum(((h == x) for x in self.where.heads), start=h < 0)
        return self.fn(s).where(chosen, s)

    def after(self, call: Call, partial: Partial) -> Partial:
        """Edit the weights or the output."""
        if self.stage == "out":
            return partial._replace(out=self._edited(partial.out))
        if self.stage == "prob":
            from regard.core.heads import expand_heads
            from regard.models.weights import closed_weights

            weights = self._edited(closed_weights(call, self.name))
            out = weights @ expand_heads(call.v, call.h).to(weights.dtype)
            return partial._replace(out=out.to(call.q.dtype))
        return partial
