"""Probes: stages that compute a score for each head."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, RegardError, RuleError, fail
from regard.core.result import Result
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.probes.chance import Baselines, Chance, like
from regard.probes.reading import NOTHING, Reading, counted_rows
from regard.probes.scores import Scores, Tally


class Probe(Stage):
    """Base of probes; a subclass defines `look` (or `see`) and `result`.

    `definition` picks one of `definitions` where sources differ; each is named with its source.
    `stimulus` is the input that it needs: the user's "text", tokens "repeated", or a "needle".
    Scores are compared with chance: the probe also scores heads that do nothing, on the same tokens
    (`chance_free` says why a probe has no such baseline).
    """

    key: ClassVar[str] = ""
    title: ClassVar[str] = ""
    # definition -> where it comes from; the first is taken unless one is named.
    definitions: ClassVar[dict[str, str]] = {"mean": ""}
    stimulus: ClassVar[str] = "text"
    kinds: ClassVar[tuple[str, ...]] = ("self",)
    causal_only: ClassVar[bool] = False
    low: ClassVar[float] = 0.0
    high: ClassVar[float | None] = 1.0
    chance_free: ClassVar[str] = ""

    def __init__(self, where: Any = None, *, definition: str | None = None) -> None:
        super().__init__(where)
        known = list(self.definitions)
        if definition is not None and definition not in known:
            fail(
                RuleError, "definition", repr(definition), f"one of {known}",
                f"{self.key}: " + "; ".join(f"{k!r} is {v}" for k, v in self.definitions.items()),
            )  # fmt: skip
        self.definition = definition or known[0]
        self.reading = NOTHING
        self.tally = Tally()
        # Why a site was skipped, and whether the user named the probe or a group contains it.
        self.refusal: RegardError | None = None
        self.named = True
        # A twin scores heads that do nothing, once for all sites that share a baseline.
        self._twin: Probe | None = None
        self._idle = Baselines()
        self._firsts: dict[Any, Site] = {}
        self._first_of: dict[Site, Site] = {}
        self._counted: dict[Site, int] = {}

    @property
    def name(self) -> str:
        """Name in errors."""
        return self.key or type(self).__name__

    def show(self, reading: Reading, idle: Baselines | None = None) -> None:
        """Set the next input of the model; probes of one forward share `idle`."""
        self.reading, self._firsts = reading, {}
        self._idle = Baselines() if idle is None else idle
        if self._twin is None and not self.chance_free:
            self._twin = copy.deepcopy(self)
        if self._twin is not None:
            self._twin.reading = reading

    def begin(self, model: Any, sites: Sites) -> None:
        """Raise unless the model has a site of the kinds that this probe supports."""
        if not any(site.kind in self.kinds for site in sites):
            fail(
                CapabilityError, f"probes: {self.name}",
                f"sites of kind {', '.join(sorted({s.kind for s in sites}))}",
                f"{' or '.join(self.kinds)} attention", "leave this probe out for this model",
            )  # fmt: skip

    def see(self, call: Call, result: Result) -> None:
        """Observe one site; an error there does not stop the others."""
        site = call.site
        if not self._looks_at(site):
            return
        try:
            if self.causal_only and call.n > 1 and looks_ahead(call):
                fail(
                    CapabilityError, f"probes: {self.name}",
                    f"{site.module}, which attends to the future",
                    "causal attention: this probe is about earlier tokens",
                    "leave this probe out for encoders",
                )  # fmt: skip
            # If only lse was wanted there is no survey.
            self.look(site, call, result if result.survey is None else result.survey)
            self._look_at_chance(site, call)
        except CapabilityError as error:
            self.refusal = self.refusal or error

    def _look_at_chance(self, site: Site, call: Call) -> None:
        """Let the twin score heads that do nothing, and count the tokens that were read."""
        counted = counted_rows(self.reading, call)
        tokens = int(counted[..., : self.tokens_of(call)].expand(call.b, 1, -1).sum())
        self._counted[site] = self._counted.get(site, 0) + tokens
        if self._twin is None or call.n < 2:
            return
        first = self._firsts.setdefault(like(call), site)
        if self._first_of.setdefault(site, first) is not first:
            return  # its baseline began as that of another site
        if first is not site:
            return
        idle, survey = self._idle.of_call(call, self.want)
        if idle is not None:
            self._twin.look(site, idle, survey)

    def look(self, site: Site, call: Call, survey: Any) -> None:
        """Process one call and its survey, if one is wanted (of `lse` alone, the result)."""

    def tokens_of(self, call: Call) -> int:
        """Return how many tokens of a row this probe reads."""
        return call.n

    def _looks_at(self, site: Any) -> bool:
        return isinstance(site, Site) and site.kind in self.kinds

    def result(self) -> Scores:
        """Return the scores."""
        return self.scores(self.tally.means())

    def told(self) -> Scores:
        """Return the scores with their chance level; raise if no site was supported."""
        scores = self.result()
        if not scores.values and self.refusal is not None:
            raise self.refusal
        tokens = max(self._counted.values(), default=None)
        return replace(scores, chance=self._chances(), tokens=tokens)

    def _chances(self) -> dict[Site, Chance]:
        """Return the chance level of each site that has a baseline."""
        if self._twin is None or not self._first_of:
            return {}
        found = self._twin.result().values
        idle = {site: x.double().tolist() for site, x in found.items()}
        return {
            site: Chance(idle[first][0], max(idle[first][1:]))
            for site, first in self._first_of.items() if first in idle
        }  # fmt: skip

    def scores(self, values: dict[Site, Tensor], **details: Any) -> Scores:
        """Wrap numbers as `Scores` of this probe."""
        return Scores(
            self.key, self.title, values, self.definition, self.definitions[self.definition],
            self.low, self.high, details,
        )  # fmt: skip


class RowMean(Probe):
    """A probe whose score is a mean over queries."""

    def look(self, site: Site, call: Call, survey: Any) -> None:
        """Add the rows that count."""
        counted = counted_rows(self.reading, call)
        self.tally.add(site, self.rows(call, survey), counted & self.eligible(call))

    def rows(self, call: Call, survey: Any) -> Tensor:
        """Return the value of each query [b, h, n]."""
        raise NotImplementedError

    def eligible(self, call: Call) -> Tensor:
        """Return which queries have a value, [1 or b, 1, n]."""
        return torch.ones(1, 1, call.n, dtype=torch.bool, device=call.q.device)


def looks_ahead(call: Call) -> bool:
    """Return whether the rule lets some query attend to a later key."""
    at = call.at(torch.tensor([0]), torch.arange(min(call.m, 2)))
    allowed = call.rule.support.allows(at.b, at.h, at.i, at.j)
    return bool((allowed & (at.j > at.i)).any())
