"""Policies over the steps of denoising: outputs of cross-attention that are kept and used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import log, prod, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.partial import Partial
from regard.core.support import Neighborhood
from regard.models.attach import hook_of
from regard.models.moment import Moment, changed, current_moment
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Policy, Step
from regard.policies.grids import image_of
from regard.policies.registry import register
from regard.run.executor import Answer, No, Yes

# Arguments of forwards that have no row for each row of the batch.
WITHOUT_ROWS = ("img_ids", "txt_ids")
Run = Callable[..., Any]


@dataclass
class OverSteps(Policy):
    """Base of policies that keep outputs of cross-attention from step to step."""

    what: ClassVar[str] = "images"
    needs_cache: ClassVar[bool] = False
    stands: ClassVar[tuple[str, ...]] = ("cross", "model")

    def can(self, model: Any, sites: Sites) -> Answer:
        """Models that denoise, with words in a cross-attention of their own."""
        if hook_of(model)[0].name != "diffusers":
            return No("which does not denoise step by step")
        if not any(s.kind == "cross" for s in sites):
            return No("which has no cross-attention")
        return Yes()

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Forget the outputs of another model."""
        super().begin(model, sites, budget)
        self.kept: dict[Any, Tensor] = {}

    def end(self) -> None:
        """Let go of outputs."""
        super().end()
        self.kept = {}

    def stand_in(self, site: Site | None, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Ask `forward` or `cross`."""
        now = current_moment()
        if self.budget.whole or now is None:
            return run(*args, **kwargs)
        if site is None:
            return self.forward(now, run, args, kwargs)
        return self.cross(now, site, run, args, kwargs)

    def forward(self, now: Moment, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run the model."""
        raise NotImplementedError

    def cross(self, now: Moment, site: Site, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a cross-attention."""
        raise NotImplementedError


def rows_of(args: Any, kwargs: Mapping[str, Any]) -> int:
    """Rows of the batch of a forward."""
    first = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else None))
    return len(first) if isinstance(first, Tensor) else 1


def taken(x: Any, rows: slice, b: int) -> Any:
    """Take some rows of everything that has one for each of the b rows of a batch.

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
    """Repeat the rows of all tensors in what a model gives."""
    if isinstance(x, Tensor):
        return torch.cat([x] * times)
    if isinstance(x, dict):  # an output of diffusers is a dict, and is made of names
        return type(x)(**{k: repeated(y, times) for k, y in x.items()})
    return type(x)(repeated(y, times) for y in x) if type(x) in (tuple, list) else x


@method("tgate", call='from regard.policies import policy; policy("tgate")')
@register("tgate")
@dataclass
class TGate(OverSteps):
    """From step `gate` on, use again what cross-attention gave, and let guidance be.

    At the last step before the gate each cross-attention gives F = (C(null) + C(text)) / 2, after
    its output projection; from then on F stands in for it, projections and all. Guidance is dropped
    by giving every branch what the conditional one gives: u + g (c - u) is then c, whatever the
    scale g, in any pipeline. One batch for both branches is run on half its rows; of two forwards
    the second is not run. (T-GATE, Zhang et al. 2024)
    """

    gate: int = 10

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Check the gate."""
        super().begin(model, sites, budget)
        if not isinstance(self.gate, int) or self.gate < 1:
            fail(ValueRangeError, "gate", self.gate, "a step of at least 1", "pass gate=10, say")
        self._branches: dict[str, dict[str, Tensor]] = {}
        self._given: tuple[Any, Any, Any] = (None, None, None)
        self._dropped = 1
        # The step that ran last, and the branches that began the denoising.
        self._at: int | None = None
        self._first: tuple[str, ...] | None = None

    def end(self) -> None:
        """Let go of outputs."""
        super().end()
        self._branches, self._given = {}, (None, None, None)

    def forward(self, now: Moment, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run all branches before the gate, and one behind it."""
        if now.step == 0 and (self._at != 0 or now.branches == self._first):
            self._branches, self.kept, self._first = {}, {}, now.branches
        self._at = now.step
        if now.step >= self.gate - 1 and now.branches is None:
            fail(
                CapabilityError, "branches", "nothing told of guidance", "which rows are guided",
                "shrink the pipeline, or run the model within regard.models.diffusers.branches",
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

    def cross(self, now: Moment, site: Site, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Keep the mean over branches at the gate; give it behind."""
        if now.step >= self.gate:
            kept = self.kept.get(site.module)
            x = kwargs.get("hidden_states", args[0] if args else None)
            if kept is None or (isinstance(x, Tensor) and len(x) != len(kept)):
                fail(
                    CapabilityError, site.module,
                    f"rows {shape_of(x)} for outputs kept of {shape_of(kept)}",
                    "one denoising from its first step, with one batch", "run it whole",
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
        """Count the branches that are not run."""
        if self._dropped > 1:
            step.dense = float(step.call.n * step.call.m * self._dropped)
        return step.call


class Settling(Stage):
    """Tell how much the outputs of cross-attention still change from step to step.

    `by_step()` gives the mean length of the difference between each step and the one before: a
    gate may stand where it has become small.
    """

    def __init__(self) -> None:
        super().__init__("cross")
        self._last: dict[Any, tuple[int, Tensor]] = {}
        self._found: dict[int, list[float]] = {}

    def after(self, call: Call, partial: Partial) -> Partial:
        """Compare with the step before."""
        now = call.site.moment
        key = (call.site, now.branches)
        step, last = self._last.get(key, (now.step, partial.out))
        if step == now.step - 1 and last.shape == partial.out.shape:
            apart = (partial.out - last).norm(dim=-1).mean()
            self._found.setdefault(now.step, []).append(float(apart))
        self._last[key] = now.step, partial.out.detach()
        return partial

    def by_step(self) -> list[float]:
        """Give the change at step 1, 2, ..., a mean over layers."""
        return [sum(x) / len(x) for _, x in sorted(self._found.items())]


@method("freeswim", call='from regard.policies import policy; policy("freeswim", window=(30, 52))')
@register("freeswim")
@dataclass
class FreeSwim(OverSteps):
    """Larger images and videos than a model was trained for, with windows of the trained size.

    `window` is the trained grid (h, w) in tokens. A query meets all frames, and on each axis of the
    picture the 2 (h // 2) + 1 places around it, moved inward at the edges. Scores are multiplied by
    sqrt(log(`ratio` L) / log L), L = h w. At every `every`-th step the conditional branch is run
    with full attention first, and what its cross-attention gives (with queries that saw the whole)
    stands in for that of the windowed run, until it is made anew; unconditional forwards have the
    windows alone. Where the window covers the grid nothing is changed. Upsampling a first result
    and adding noise to it, as the paper does before, is up to the pipeline (video to video).
    (FreeSwim, Wu et al. 2025)
    """

    window: tuple[int, int] | None = None
    every: int = 2
    ratio: float = 2.0

    def can(self, model: Any, sites: Sites) -> Answer:
        """Transformers of one resolution."""
        if any(s.module.startswith(("down_blocks", "up_blocks")) for s in sites):
            return No("whose blocks run at several resolutions")
        return super().can(model, sites)

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Check the window."""
        super().begin(model, sites, budget)
        w = self.window
        good = isinstance(w, tuple | list) and len(w) == 2 and all(isinstance(x, int) for x in w)
        if not self.budget.whole and (not good or min(w or (0,)) < 1):
            fail(
                ValueRangeError, "window", shape_of(w), "the trained grid (h, w), in tokens",
                "pass window=(30, 52), say: latent sides over the patch",
            )  # fmt: skip
        if not isinstance(self.every, int) or self.every < 1 or self.ratio < 1:
            fail(
                ValueRangeError, "every", f"{self.every}, with ratio {self.ratio}",
                "a number of steps, and a ratio of at least 1", "leave them out",
            )  # fmt: skip
        self._full = False
        self._rows: slice | None = None

    def kernel(self, grid: tuple[int, ...]) -> tuple[int, ...] | None:
        """Sides of the window on a grid; None where it covers all."""
        assert self.window is not None
        sides = [min(2 * (w // 2) + 1, s) for w, s in zip(self.window, grid[-2:], strict=True)]
        return None if sides == list(grid[-2:]) else (*grid[:-2], *sides)

    def select(self, step: Step) -> Call:
        """Put windows on self-attention, or count a branch that is run beside."""
        call = step.call
        if self._full:
            step.dense = 0.0
        image = None if self.budget.whole else image_of(call)
        kernel = None if image is None else self.kernel(image.grid)
        if image is None or kernel is None:
            return call
        size = prod(self.window or (1,))
        call = call.replace(q=call.q * sqrt(log(self.ratio * size) / log(max(size, 2))))
        if self._full:
            return call
        step.pairs = float(call.n * prod(kernel))
        support = call.rule.support & Neighborhood(kernel, image.grid)
        return call.replace(rule=call.rule.replace(support=support))

    def forward(self, now: Moment, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run the full branch where it is time, then the windows."""
        names = now.branches or ()
        small = now.grid is not None and self.kernel(now.grid) is None
        if small or names == ("unconditional",):
            return run(*args, **kwargs)
        b = rows_of(args, kwargs)
        rows = now.rows("conditional", b) if len(names) > 1 else slice(0, b)
        if now.step % self.every == 0 or not self.kept:
            told = {"branches": ("conditional",)} if len(names) > 1 else {}
            with self._fully(), changed(**told):
                run(*taken(args, rows, b), **taken(kwargs, rows, b))
        self._rows = rows
        try:
            return run(*args, **kwargs)
        finally:
            self._rows = None

    @contextmanager
    def _fully(self) -> Iterator[None]:
        self.kept, self._full = {}, True
        try:
            yield
        finally:
            self._full = False

    def cross(self, now: Moment, site: Site, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Keep the output of the full branch; put it in the place of the windowed one."""
        if self._full:
            out = self.kept[site.module] = run(*args, **kwargs)
            return out
        kept = self.kept.get(site.module)
        if self._rows is None or kept is None:
            return run(*args, **kwargs)
        x = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(x, Tensor) and len(x) == len(kept):
            return kept
        out = run(*args, **kwargs).clone()
        out[self._rows] = kept
        return out


__all__ = ["FreeSwim", "OverSteps", "Settling", "TGate", "repeated", "taken"]
