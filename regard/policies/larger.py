"""Larger images and videos than a model was trained for, by windows of the trained size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import log, prod, sqrt
from typing import Any, ClassVar

from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.support import Neighborhood
from regard.models.forward import Forward, changed
from regard.models.site import Site, Sites
from regard.policies.base import Step
from regard.policies.denoising import OverSteps, Run, rows_of, taken
from regard.policies.grids import image_of
from regard.policies.kinds import Select
from regard.policies.registry import register
from regard.run.executor import Answer, No


@method("freeswim", call='from regard.policies import policy; policy("freeswim", window=(30, 52))')
@register("freeswim")
@dataclass
class FreeSwim(OverSteps, Select):
    """Larger images and videos than a model was trained for, with windows of the trained size.

    `window` is the trained grid (h, w) in tokens. A query attends to all frames, and on each axis
    of the image to the 2 (h // 2) + 1 positions around it, moved inward at the edges. Scores are
    multiplied by sqrt(log(`ratio` L) / log L), L = h w. At every `every`-th step the conditional
    branch is run with full attention first, and the outputs of its cross-attention replace those of
    the windowed runs until the next; unconditional forwards have windows only. Where the window
    covers the grid nothing changes. Upsampling and noising a first result, as the paper does
    before, is up to the pipeline (video to video). (FreeSwim, Wu et al. 2025)
    """

    what: ClassVar[str] = "images"
    needs_cache: ClassVar[bool] = False
    window: tuple[int, int] | None = None
    every: int = 2
    ratio: float = 2.0

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model is a transformer of one resolution."""
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
        """Return the sides of the window on a grid; None where it covers all."""
        assert self.window is not None
        sides = [min(2 * (w // 2) + 1, s) for w, s in zip(self.window, grid[-2:], strict=True)]
        return None if sides == list(grid[-2:]) else (*grid[:-2], *sides)

    def select(self, step: Step) -> Call:
        """Add windows to self-attention; an extra full branch counts as no dense pairs."""
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
        support = call.rule.support & Neighborhood(kernel, image.grid)
        return call.replace(rule=call.rule.replace(support=support))

    def forward(self, now: Forward, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run the full branch when it is due, then the windows."""
        names = now.branches or ()
        small = now.grid is not None and self.kernel(now.grid) is None
        if small or names == ("unconditional",):
            return run(*args, **kwargs)
        b = rows_of(args, kwargs)
        rows = now.rows("conditional", b) if len(names) > 1 else slice(0, b)
        if now.step % self.every == 0 or not self.kept:
            parts = {"branches": ("conditional",)} if len(names) > 1 else {}
            with self._fully(), changed(**parts):
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

    def cross(self, now: Forward, site: Site, run: Run, args: Any, kwargs: dict[str, Any]) -> Any:
        """Keep the output of the full branch, and return it in the windowed run."""
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
