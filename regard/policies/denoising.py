"""Policies over denoising steps: outputs of cross-attention that are kept and reused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.result import Result
from regard.models.attach import hook_of
from regard.models.forward import Forward, changed, current_forward
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Step
from regard.policies.kinds import ModulePatch, Select
from regard.policies.registry import register
from regard.run.executor import Answer, No, Yes

# Arguments of forwards that have no batch axis.
WITHOUT_ROWS = ("img_ids", "txt_ids")
Run = Callable[..., Any]


def denoises(model: Any, sites: Sites, *kinds: str) -> Answer:
    """Return whether a model denoises, and has attention of one of these kinds."""
    if hook_of(model)[0].name != "diffusers":
        return No("which is not a denoising model")
    found = any(s.kind in kinds for s in sites)
    return Yes() if found else No(f"which has no {kinds[0]}-attention")


@dataclass
class OverSteps(ModulePatch):
    """Base of policies that keep outputs of cross-attention from step to step."""

    what: ClassVar[str] = "images"
    patches: ClassVar[tuple[str, ...]] = ("cross", "model")

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model denoises and has cross-attention to words."""
        return denoises(model, sites, "cross")

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Drop the outputs of an earlier model."""
        super().begin(model, sites, budget)
        self.kept: dict[Any, Tensor] = {}

    def end(self) -> None:
        """Release outputs."""
        super().end()
        self.kept = {}

    def patch(self, site: Site | None, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Dispatch to `forward` or `cross`."""
        now = current_forward()
        if self.budget.whole or now is None:
            return run(*args, **kwargs)
        if site is None:
            return self.forward(now, run, args, kwargs)
        return self.cross(now, site, run, args, kwargs)

    def forward(self, now: Forward, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run the model; called where `patches` has "model"."""
        raise NotImplementedError

    def cross(self, now: Forward, site: Site, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a cross-attention; called where `patches` has "cross"."""
        raise NotImplementedError


def rows_of(args: Any, kwargs: Mapping[str, Any]) -> int:
    """Return the batch size of a forward."""
    first = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else None))
    return len(first) if isinstance(first, Tensor) else 1


def taken(x: Any, rows: slice, b: int) -> Any:
    """Select some rows of everything that has one for each of the b rows of a batch.

    >>> taken({"x": torch.arange(4), "scale": 2.0}, slice(2, 4), 4)
    {'x': tensor([2, 3]), 'scale': 2.0}
    """
    if isinstance(x, Tensor):
        return x[rows] if x.dim() and len(x) == b else x
    if isinstance(x, dict):
        return {k: y if k in WITHOUT_ROWS else taken(y, rows, b) for k, y in x.items()}
    if type(x) in (tuple, list):
        return type(x)(taken(y, rows, b) for y in x)
    return x


def repeated(x: Any, times: int) -> Any:
    """Repeat the rows of all tensors in the output of a model."""
    if isinstance(x, Tensor):
        return torch.cat([x] * times)
    if isinstance(x, dict):  # an output of diffusers is a dict, built from keywords
        return type(x)(**{k: repeated(y, times) for k, y in x.items()})
    return type(x)(repeated(y, times) for y in x) if type(x) in (tuple, list) else x


@method("tgate", call='from regard.policies import policy; policy("tgate")')
@register("tgate")
@dataclass
class TGate(OverSteps, Select):
    """From step `gate` on, reuse the outputs of cross-attention, and drop guidance.

    At the last step before the gate each cross-attention keeps F = (C(null) + C(text)) / 2, after
    its output projection; from then on F replaces the module, projections included. Guidance is
    dropped by returning the conditional output for every branch: u + g (c - u) is then c for any
    scale g, in any pipeline. One batch for both branches is run on half its rows; of two forwards
    the second is not run. (T-GATE, Zhang et al. 2024)
    """

    what: ClassVar[str] = "images"
    needs_cache: ClassVar[bool] = False
    gate: int = 10

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Check the gate."""
        super().begin(model, sites, budget)
        if not isinstance(self.gate, int) or self.gate < 1:
            fail(ValueRangeError, "gate", self.gate, "a step of at least 1", "pass gate=10, say")
        self._branches: dict[str, dict[str, Tensor]] = {}
        self._given: tuple[Any, Any, Any] = (None, None, None)
        self._dropped = 1
        # The step that ran last, and the branches of the first forward.
        self._at: int | None = None
        self._first: tuple[str, ...] | None = None

    def end(self) -> None:
        """Release outputs."""
        super().end()
        self._branches, self._given = {}, (None, None, None)

    def forward(self, now: Forward, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run all branches before the gate, and the conditional one after it."""
        if now.step == 0 and (self._at != 0 or now.branches == self._first):
            self._branches, self.kept, self._first = {}, {}, now.branches
        self._at = now.step
        if now.step >= self.gate - 1 and now.branches is None:
            fail(
                CapabilityError, "branches", "unknown guidance branches",
                "which rows belong to which branch",
                "shrink the pipeline, or run the model inside regard.models.diffusers.branches",
            )  # fmt: skip
        if now.step < self.gate:
            return run(*args, **kwargs)
        names = now.branches or ()
        if len(names) > 1:
            b = rows_of(args, kwargs)
            rows = now.rows("conditional", b)
            self._dropped = len(names)
            try:
                with changed(branches=("conditional",)):
                    out = run(*taken(args, rows, b), **taken(kwargs, rows, b))
            finally:
                self._dropped = 1
            return repeated(out, len(names))
        step, branch, out = self._given
        if step == now.step and branch != names:
            return out
        out = run(*args, **kwargs)
        self._given = (now.step, names, out)
        return out

    def cross(self, now: Forward, site: Site, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Keep the mean over branches at the gate; return it after the gate."""
        if now.step >= self.gate:
            kept = self.kept.get(site.module)
            x = kwargs.get("hidden_states", args[0] if args else None)
            if kept is None or (isinstance(x, Tensor) and len(x) != len(kept)):
                fail(
                    CapabilityError, site.module,
                    f"rows {shape_of(x)} for kept outputs {shape_of(kept)}",
                    "one denoising run from step 0, with one batch size", "run it from the start",
                )  # fmt: skip
            return kept
        out = run(*args, **kwargs)
        if now.step == self.gate - 1:
            names = now.branches or ()
            mine = self._branches.setdefault(site.module, {})
            for name in names:
                mine[name] = out[now.rows(name, len(out))].detach()
            self.kept[site.module] = torch.stack(list(mine.values())).mean(0)
        return out

    def select(self, step: Step) -> Call:
        """Count the branches that are not run as dense pairs."""
        if self._dropped > 1:
            step.dense = float(step.call.n * step.call.m * self._dropped)
        return step.call


class Settling(Stage):
    """Measure how much the outputs of cross-attention change from step to step.

    `by_step()` returns the mean norm of the difference between each step and the one before: a
    gate may be set where it has become small.
    """

    def __init__(self) -> None:
        super().__init__("cross")
        self._last: dict[Any, tuple[int, Tensor]] = {}
        self._found: dict[int, list[float]] = {}

    def after(self, call: Call, partial: Result) -> Result:
        """Compare with the step before."""
        now = call.forward
        key = (call.site, now.branches)
        step, last = self._last.get(key, (now.step, partial.out))
        if step == now.step - 1 and last.shape == partial.out.shape:
            apart = (partial.out - last).norm(dim=-1).mean()
            self._found.setdefault(now.step, []).append(float(apart))
        self._last[key] = now.step, partial.out.detach()
        return partial

    def by_step(self) -> list[float]:
        """Return the mean change over layers at step 1, 2, ..."""
        return [sum(x) / len(x) for _, x in sorted(self._found.items())]
