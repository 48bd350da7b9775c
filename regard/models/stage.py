"""Stages: middleware for attention.

A call comes from a model, passes `before` of each stage in order, is run, and passes `after` in
reverse order. A stage may also observe the call and its result in `see`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, fail, shape_of
from regard.core.heads import expand_heads
from regard.core.result import Result
from regard.models.site import Place, Sites

PARTS = ("q", "k", "v", "bias", "prob", "out")


class Stage:
    """Base of everything that observes or changes attention; override what you need.

    `want` names what every result must have: survey statistics, "lse", or "weights" (tiny inputs
    only); it arrives in `see`, with the call. `where` chooses sites (see `Place.of`).

    >>> class Louder(Stage):
    ...     def after(self, call, result):
    ...         return result._replace(out=2 * result.out)
    >>> Louder(where=range(4)).where.layers == frozenset(range(4))
    True
    """

    want: Sequence[str] = ()
    # Extra arguments of `regard.survey`; stages that share a pass must agree on them.
    survey_options: ClassVar[dict[str, Any]] = {}
    # Whether `around` replaces how calls are run; at most one such stage per site.
    runs: bool = False
    # Whether it comes after the other stages, to work on the keys that policies have selected.
    runs_last: bool = False

    def __init__(self, where: Any = None) -> None:
        self.where = Place.of(where)

    @property
    def name(self) -> str:
        """Name in errors."""
        return type(self).__name__

    def begin(self, model: Any, sites: Sites) -> None:
        """Prepare for a model; `sites` are those selected by `where`."""

    def end(self) -> None:
        """Release the model."""

    def before(self, call: Call) -> Call:
        """Change the call before it is run."""
        return call

    def wants(self, call: Call) -> Sequence[str]:
        """Return what is wanted of one call, which is as `before` returned it."""
        return self.want

    def around(self, call: Call, run: Any) -> Result:
        """Run the call: `run(call)` as usual, or in a way that no rule or keys express.

        Called where `runs` is true. `run.want` names what stages need of the result.
        """
        found: Result = run(call)
        return found

    def see(self, call: Call, result: Result) -> None:
        """Observe the call as it was run, after `before` of all stages, and its result."""

    def after(self, call: Call, result: Result) -> Result:
        """Change the result: `result._replace(out=...)`, out [b, h, n, e]."""
        return result


class Null(Stage):
    """Does nothing: with it, a model must return what it returns without it.

    >>> Null().name
    'Null'
    """


class Edit(Stage):
    """Edit one part of attention: `fn` gets the part named by `stage`, and returns it changed.

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

    def wants(self, call: Call) -> Sequence[str]:
        """Want the weights, where these are edited."""
        return ("weights",) if self.stage == "prob" else ()

    def after(self, call: Call, result: Result) -> Result:
        """Edit the weights or the output."""
        if self.stage == "out":
            return result._replace(out=self._edited(result.out))
        if self.stage == "prob":
            assert result.weights is not None
            weights = self._edited(result.weights)
            out = weights @ expand_heads(call.v, call.h).to(weights.dtype)
            return result._replace(out=out.to(call.q.dtype), weights=weights)
        return result
