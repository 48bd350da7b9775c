"""The receipt of a control: what it changed, where, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import RegardError, RuleError, fail, nearest
from regard.core.html_table import html_table, padded_rows
from regard.models.site import Site

# A smaller change counts as none: it is within float32 rounding.
STILL = 1e-6


class NothingMoved(RegardError):
    """A control was attached and the model ran, but attention did not change."""


@dataclass(frozen=True)
class Fired:
    """One call that a control changed.

    `before` and `after` are the mass on each named set, [b, h], averaged over the queries measured,
    which are `rows` [b, r] of the call (including the last). `moved` is the largest change of a row
    of weights (half the sum of absolute differences: the mass that moved), or of the output
    relative to its size, whichever is larger; None if it was not measured.
    """

    site: Site | None
    step: int
    queries: int
    prompt: bool
    heads: tuple[int, ...]
    before: dict[str, Tensor] = field(default_factory=dict, repr=False)
    after: dict[str, Tensor] = field(default_factory=dict, repr=False)
    rows: Tensor | None = field(default=None, repr=False)
    moved: float | None = None


@dataclass
class Receipt:
    """What a control did since it was attached.

    >>> Receipt("emphasis").fired
    0
    """

    control: str
    acts: Sequence[dict[str, Any]] = ()
    calls: list[Fired] = field(default_factory=list)
    # Forwards of the model since the control was attached.
    forwards: int = 0
    # Comparison of the logits of a text with those of the unsteered model, if requested.
    logits: dict[str, float] | None = None

    @property
    def fired(self) -> int:
        """Return the number of calls of attention that were changed."""
        return len(self.calls)

    @property
    def at_prompts(self) -> int:
        """Return the number of calls of prompts that were changed."""
        return sum(x.prompt for x in self.calls)

    @property
    def at_steps(self) -> dict[int, int]:
        """Return the number of calls changed at each decoded token, by step (1 is the first)."""
        found: dict[int, int] = {}
        for x in self.calls:
            if not x.prompt:
                found[x.step] = found.get(x.step, 0) + 1
        return found

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers that were changed."""
        own = {x.site.layer for x in self.calls if x.site is not None and x.site.layer is not None}
        return tuple(sorted(own))

    @property
    def heads(self) -> tuple[tuple[int | None, int], ...]:
        """Return the heads that were changed, as (layer, head)."""
        own = {(None if x.site is None else x.site.layer, h) for x in self.calls for h in x.heads}
        return tuple(sorted(own, key=lambda pair: (pair[0] is None, pair)))

    @property
    def moved(self) -> float:
        """Return the largest change of a row of weights, or of an output relative to its size."""
        return max((x.moved for x in self.calls if x.moved is not None), default=0.0)

    @property
    def measured(self) -> int:
        """Return the number of calls whose weights were measured."""
        return sum(x.moved is not None for x in self.calls)

    @property
    def sets(self) -> tuple[str, ...]:
        """Return the names of the token sets."""
        return tuple(dict.fromkeys(name for x in self.calls for name in x.after))

    def mass(self, name: str | None = None) -> tuple[float, float]:
        """Return the mean mass on a set before and after, over the calls and heads changed."""
        if name is None and len(self.sets) == 1:
            name = self.sets[0]
        if name not in self.sets:
            fail(
                RuleError, "name", repr(name), f"one of {list(self.sets)}",
                nearest(name, self.sets, "name a set of the receipt"),
            )  # fmt: skip
        pairs = []
        for x in self.calls:
            if name in x.after and x.heads:
                heads = list(x.heads)
                old = x.before.get(name, torch.zeros_like(x.after[name]))
                pairs.append((float(old[:, heads].mean()), float(x.after[name][:, heads].mean())))
        before, after = zip(*pairs, strict=True) if pairs else ((0.0,), (0.0,))
        return sum(before) / len(before), sum(after) / len(after)

    def need_effect(self) -> None:
        """Raise `NothingMoved` if the model ran and nothing moved."""
        if not self.forwards:
            return
        if not self.fired:
            self._fail("it fired 0 times")
        if self.measured and self.moved < STILL:
            self._fail(f"it fired {self.fired} times and moved {self.moved:.1e} of the weight")

    def _fail(self, what: str) -> None:
        fail(
            NothingMoved, f"control {self.control!r}", what, "some effect on attention",
            "check which, where, phase and strength; or pass must_move=False",
        )  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of headings, then one row of strings per layer."""
        names = self.sets
        head = (
            "layer",
            "heads",
            "at prompts",
            "at tokens",
            *(f"mass on {x}" for x in names),
            "moved",
        )
        made = [head]
        sites = dict.fromkeys(x.site for x in self.calls)
        for site in sites:
            own = Receipt(self.control, calls=[x for x in self.calls if x.site == site])
            masses = []
            for name in names:
                old, new = own.mass(name) if name in own.sets else (0.0, 0.0)
                masses.append(f"{old:.4f} -> {new:.4f}" if name in own.sets else "-")
            layer = "-" if site is None or site.layer is None else str(site.layer)
            heads = sorted({h for x in own.calls for h in x.heads})
            made.append((
                layer, _runs(heads), str(own.at_prompts), str(sum(own.at_steps.values())), *masses,
                f"{own.moved:.4f}",
            ))  # fmt: skip
        return made

    def __str__(self) -> str:
        steps = self.at_steps
        each = f"; at each of {len(steps)} decoded tokens" if steps else ""
        said = (
            f"{self.control}: changed {self.fired} calls in {self.forwards} forwards: "
            f"{self.at_prompts} of prompts, {sum(steps.values())} of decoded tokens{each}; "
            f"{len(self.heads)} heads in {len(self.layers)} layers; moved up to {self.moved:.4f}"
        )
        lines = padded_rows(self.rows())
        if self.logits is not None:
            lines.append("logits: " + ", ".join(f"{k} {x:.4g}" for k, x in self.logits.items()))
        return "\n".join([said, *lines])

    def _repr_html_(self) -> str:
        head, *rows = self.rows()
        return html_table(str(self).splitlines()[0], head, rows)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-serializable data."""
        return {
            "control": self.control, "acts": list(self.acts), "fired": self.fired,
            "forwards": self.forwards, "at_prompts": self.at_prompts,
            "at_steps": {str(k): x for k, x in self.at_steps.items()},
            "layers": list(self.layers), "heads": [list(x) for x in self.heads],
            "mass": {name: list(self.mass(name)) for name in self.sets}, "moved": self.moved,
            "logits": self.logits,
        }  # fmt: skip


def _runs(numbers: Sequence[int]) -> str:
    """Format numbers as ranges.

    >>> _runs([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for x in numbers:
        if runs and x == runs[-1][1] + 1:
            runs[-1][1] = x
        else:
            runs.append([x, x])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
