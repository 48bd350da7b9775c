"""The engine: a call passes the stages, is run, and passes them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, ShapeError, fail, shape_of
from regard.core.partial import Partial
from regard.models.forward import current_forward
from regard.models.site import Site
from regard.models.stage import Stage
from regard.models.weights import closed_weights
from regard.run.plan import chosen


class Engine:
    """Run calls through stages.

    >>> import torch
    >>> q = torch.randn(1, 2, 3, 8)
    >>> Engine(()).run(Call(q, q, q)).shape
    torch.Size([1, 2, 3, 8])
    """

    def __init__(self, stages: Sequence[Stage] = ()) -> None:
        for stage in stages:
            if not isinstance(stage, Stage):
                fail(
                    RuleError,
                    "stages",
                    shape_of(stage),
                    "Stage instances",
                    "derive it from regard.models.Stage, and pass an instance of it",
                )
        self.stages = tuple(stages)
        self._at: dict[Site | None, tuple[Stage, ...]] = {}
        places = (getattr(s, "where", None) for s in self.stages)
        self._by_step = any(getattr(p, "steps", None) is not None for p in places)

    def at(self, site: Site | None) -> tuple[Stage, ...]:
        """Give the stages that serve a site."""
        found = self._at.get(site)
        if found is None:
            found = tuple(s for s in self.stages if site is None or site in s.where)
            self._at[site] = found
        return found

    def serving(self, site: Site | None) -> tuple[Stage, ...]:
        """Give the stages that serve a site at the step that is running.

        What runs outside of a forward of the model, as an encoder does under generate, is step 0.
        """
        stages = self.at(site) if self.stages else ()
        if not self._by_step:
            return stages
        now = current_forward()
        step = 0 if now is None else now.step
        return tuple(s for s in stages if s.where.steps is None or step in s.where.steps)

    def run(self, call: Call) -> Tensor:
        """Give out [b, h, n, e] of a call."""
        return self.followed(call)[0]

    def followed(self, call: Call, *, alone: bool = True) -> tuple[Tensor, Call]:
        """Give out [b, h, n, e] of a call, and the call as the stages made it.

        A stage that is the only one may run the call by itself, unless `alone` is false: then
        the call that is given is the one that was run.
        """
        stages = self.serving(call.site)
        if not stages:
            return attended(call), call
        if alone and len(stages) == 1:
            out = stages[0].stand_in(call)
            if out is not None:
                return out, call
        call = timed(call)
        site = call.site
        passed: list[tuple[Stage, Call]] = []
        for stage in stages:
            new = stage.before(call)
            if new is not call:
                _need_call(stage, new, call)
            call = new
            passed.append((stage, call))
        _show(stages, call, site)
        if all(type(s).after is Stage.after for s in stages):
            return attended(call), call
        partial = whole(call)
        for stage, seen in reversed(passed):
            new_partial = stage.after(seen, partial)
            if new_partial is not partial:
                _need_partial(stage, new_partial, partial, site)
            partial = new_partial
        return partial.out, call


def timed(call: Call) -> Call:
    """Let the site of a call know the moment that it comes at."""
    now = current_forward()
    if now is None or not isinstance(call.site, Site):
        return call
    return call.replace(site=call.site.at(now))


def attended(call: Call) -> Tensor:
    """Run one call, sinks counted."""
    runs = chosen(call)
    if call.rule.weigh.closes:
        return call.rule.weigh.close(runs.run(call)).out
    return runs.out(call)


def whole(call: Call) -> Partial:
    """Run one call for (out, lse), sinks counted."""
    if call.dropout:  # a part with dropout has no exact lse
        return Partial(attended(call), None)
    partial = chosen(call, None, lse=True).run(call)
    return call.rule.weigh.close(partial) if call.rule.weigh.closes else partial


def _show(stages: Sequence[Stage], call: Call, site: Any) -> None:
    """Show the call, survey once for all who want something, give weights to those who ask."""
    for stage in stages:
        stage.observe(call)
    wanting = [s for s in stages if s.want]
    if wanting:
        from regard.run.survey import survey

        options: dict[str, Any] = {}
        for stage in wanting:
            for name, value in stage.survey_options.items():
                if name in options and options[name] is not value and options[name] != value:
                    fail(
                        RuleError,
                        f"{stage.name}.survey_options",
                        f"{name}={value!r}",
                        f"{name}={options[name]!r}, as another stage asks",
                        "let stages that share a survey agree, or attach them one by one",
                    )
                options[name] = value
        report = survey(
            call.q.detach(),
            call.k.detach(),
            call.v.detach(),
            call.rule,
            want=tuple(dict.fromkeys(x for s in wanting for x in s.want)),
            q_positions=call.q_positions,
            k_positions=call.k_positions,
            **options,
        )
        for stage in wanting:
            stage.see(site, report)
    asking = [s for s in stages if s.wants_weights]
    if asking:
        weights = closed_weights(call, asking[0].name)
        for stage in asking:
            stage.see_weights(site, weights)


def _need_call(stage: Stage, new: Any, old: Call) -> None:
    if not isinstance(new, Call):
        fail(
            RuleError,
            f"{stage.name}.before at {_name(old.site)}",
            shape_of(new),
            "a Call",
            "return call.replace(...)",
        )
    new.checked()
    for axis, was, came in (
        ("batch", old.b, new.b),
        ("query heads", old.h, new.h),
        ("queries", old.n, new.n),
        ("value size", old.e, new.e),
    ):
        if was != came:
            _wrong(stage, "before", old.site, f"{axis} {came}", f"{axis} {was}")
    if new.q.dtype != old.q.dtype:
        _wrong(stage, "before", old.site, f"{new.q.dtype}", f"{old.q.dtype}")


def _need_partial(stage: Stage, new: Any, old: Partial, site: Any) -> None:
    if not isinstance(new, Partial):
        _wrong(stage, "after", site, shape_of(new), "a Partial (out, lse)")
    if not isinstance(new.out, Tensor) or new.out.shape != old.out.shape:
        _wrong(stage, "after", site, shape_of(new.out), f"out of shape {list(old.out.shape)}")
    if new.out.dtype != old.out.dtype:
        _wrong(stage, "after", site, f"out of {new.out.dtype}", f"{old.out.dtype}")


def _wrong(stage: Stage, step: str, site: Any, got: str, expected: str) -> None:
    fail(
        ShapeError,
        f"{stage.name}.{step} at {_name(site)}",
        got,
        expected,
        "give back what came in, changed in its values alone",
    )


def _name(site: Any) -> str:
    return getattr(site, "module", None) or "a call outside of any site"
