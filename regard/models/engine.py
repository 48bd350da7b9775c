"""The engine: a call passes through the stages, is run, and passes back in reverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, ShapeError, fail, shape_of
from regard.core.keys import Dense
from regard.core.result import Result
from regard.models.forward import current_forward
from regard.models.recomputation import note_call
from regard.models.recomputation import thread as recording
from regard.models.site import Place, Site
from regard.models.stage import Stage
from regard.run.counting import COUNT
from regard.run.runner import OUT, run


class Engine:
    """Run calls through stages, in one way for any number of stages.

    >>> import torch
    >>> q = torch.randn(1, 2, 3, 8)
    >>> Engine(()).run(Call.of(q, q, q)).shape
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
        self.stages = tuple(sorted(stages, key=lambda stage: stage.runs_last))
        self._checkpointed = False
        self._at: dict[Site | None, tuple[Stage, ...]] = {}
        places = (getattr(s, "where", None) for s in self.stages)
        self._everywhere = all(getattr(s, "where", None) == Place() for s in self.stages)
        self._by_step = any(getattr(p, "steps", None) is not None for p in places)

    def at(self, site: Site | None) -> tuple[Stage, ...]:
        """Return the stages of a site."""
        found = self._at.get(site)
        if found is None:
            found = tuple(s for s in self.stages if site is None or site in s.where)
            self._at[site] = found
        return found

    def serving(self, site: Site | None) -> tuple[Stage, ...]:
        """Return the stages of a site at the running step.

        What runs outside a forward of the model, like an encoder under generate, is step 0.
        """
        stages = self.at(site) if self.stages else ()
        if not self._by_step:
            return stages
        now = current_forward()
        step = 0 if now is None else now.step
        return tuple(s for s in stages if s.where.steps is None or step in s.where.steps)

    def run(self, call: Call) -> Tensor:
        """Run a call: out [b, h, n, e]."""
        return self.result(call)[0].out

    def result(self, call: Call, want: tuple[str, ...] = OUT) -> tuple[Result, Call]:
        """Run a call; return its result, and the call as the stages made it.

        `want` is what the caller needs, in addition to the stages.
        """
        stages = self.stages if self._everywhere else self.serving(call.site)
        if not stages:
            return run(call, want), call
        recorded = recording.recorded is not None or torch.is_grad_enabled()
        if recorded and not torch.compiler.is_compiling():
            self._checkpointed = note_call(self._checkpointed)
        if call.forward is None and isinstance(call.site, Site):
            call = call.replace(forward=current_forward())
        passed: list[tuple[Stage, Call]] = []
        around = None
        options: dict[str, Any] = {}
        depth = COUNT.depth
        # Restored twice, so that an interruption of the one leaves the other.
        try:
            try:
                # What stages compute is counted, and not recorded as a call of the model.
                COUNT.depth = depth + 1
                for stage in stages:
                    new = stage.before(call)
                    if new is not call:
                        _need_call(stage, new, call)
                        call = new
                    passed.append((stage, call))
                    more = stage.wants(call)
                    if more:
                        want = tuple(dict.fromkeys((*want, *more)))
                        if stage.survey_options:
                            _agree(stage, options)
                    if stage.runs:
                        around = _alone(stage, around, call)
                COUNT.depth = depth
                if around is None:
                    result = run(call, want, **options)
                else:
                    result = around.around(call, CallRunner(want, options))
                    _need_result(around, "around", result, None, call.site)
                COUNT.depth = depth + 1
                for stage in stages:
                    see = stage.see
                    if getattr(see, "__func__", None) is not _NOTHING_SEEN:
                        see(call, result)
                for stage, seen in reversed(passed):
                    new_result = stage.after(seen, result)
                    if new_result is not result:
                        _need_result(stage, "after", new_result, result, call.site)
                        result = new_result
            finally:
                COUNT.depth = depth
        finally:
            COUNT.depth = depth
        return result, call


# What stages do that look at no result: to call it would cost each step a little.
_NOTHING_SEEN = Stage.see


class CallRunner:
    """Run a call with everything that is wanted of it; `Stage.around` gets one."""

    def __init__(self, want: tuple[str, ...], options: dict[str, Any]) -> None:
        self.want, self.options = want, options

    @property
    def plain(self) -> bool:
        """Whether nothing but the output is wanted."""
        return self.want == OUT

    def __call__(self, call: Call) -> Result:
        """Run a call."""
        return run(call, self.want, **self.options)


def _agree(stage: Stage, options: dict[str, Any]) -> None:
    """Add the survey options of a stage; raise if another stage has different ones."""
    for name, value in stage.survey_options.items():
        if name in options and options[name] is not value and options[name] != value:
            fail(
                RuleError,
                f"{stage.name}.survey_options",
                f"{name}={value!r}",
                f"{name}={options[name]!r}, as another stage has",
                "let stages that share a survey agree, or attach them one by one",
            )
        options[name] = value


def _alone(stage: Stage, other: Stage | None, call: Call) -> Stage:
    """Refuse two stages that would both replace how a call is run."""
    if other is not None:
        fail(
            RuleError, f"{stage.name} at {_name(call.site)}",
            f"a second stage that runs calls itself, after {other.name}",
            "one such stage at a site", "attach them one by one",
        )  # fmt: skip
    return stage


def _need_call(stage: Stage, new: Any, old: Call) -> None:
    if not isinstance(new, Call):
        fail(
            RuleError,
            f"{stage.name}.before at {_name(old.site)}",
            shape_of(new),
            "a Call",
            "return call.replace(...)",
        )
    if new.q is old.q and new.keys is old.keys:
        return
    if not isinstance(new.q, Tensor):
        _wrong(stage, "before", old.site, f"q as {shape_of(new.q)}", "q as a tensor")
    if new.q is old.q or (new.q.shape[:3] == old.q.shape[:3] and new.q.dtype == old.q.dtype):
        a, b = new.keys, old.keys
        e = a.v.shape[3] if type(a) is Dense else a.shape[4]
        if e == (b.v.shape[3] if type(b) is Dense else b.shape[4]):
            return
    new.checked()
    for axis, x, y in (
        ("batch", old.b, new.b),
        ("query heads", old.h, new.h),
        ("queries", old.n, new.n),
        ("value size", old.e, new.e),
    ):
        if x != y:
            _wrong(stage, "before", old.site, f"{axis} {y}", f"{axis} {x}")
    if new.q.dtype != old.q.dtype:
        _wrong(stage, "before", old.site, f"{new.q.dtype}", f"{old.q.dtype}")


def _need_result(stage: Stage, step: str, new: Any, old: Result | None, site: Any) -> None:
    if not isinstance(new, Result):
        _wrong(stage, step, site, shape_of(new), "a Result: result._replace(out=...)")
    if old is None:
        return
    if not isinstance(new.out, Tensor) or new.out.shape != old.out.shape:
        _wrong(stage, step, site, shape_of(new.out), f"out of shape {list(old.out.shape)}")
    if new.out.dtype != old.out.dtype:
        _wrong(stage, step, site, f"out of {new.out.dtype}", f"{old.out.dtype}")


def _wrong(stage: Stage, step: str, site: Any, got: str, expected: str) -> None:
    fail(
        ShapeError,
        f"{stage.name}.{step} at {_name(site)}",
        got,
        expected,
        "return the same shapes and dtypes, with other values",
    )


def _name(site: Any) -> str:
    return getattr(site, "module", None) or "a call outside of any site"
