"""A wrapper that makes a policy which evicts after prompts evict at every step as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.models.site import Site, Sites
from regard.policies.base import Step
from regard.policies.budget import Budget
from regard.policies.kinds import Evict, EvictAtSteps, EvictByHistory, Store
from regard.run.executor import Answer

if TYPE_CHECKING:
    from regard.models.cache import KeyLayer


@dataclass(kw_only=True)
class EachStep(EvictAtSteps, Store):
    """Make a policy evict at every step as it does after prompts.

    Once a step exceeds the budget, a share `spare` of it is freed at once, and at least `FREED`
    tokens where these are no more than an eighth of it, so that few steps evict.

    >>> from regard.policies.evicting import SnapKV
    >>> EachStep(inner=SnapKV(window=8)).window
    8
    """

    inner: Evict
    spare: float = 1 / 64

    def __post_init__(self) -> None:
        inner = self.inner
        self.keep = inner.keep if self.keep is None else self.keep
        vars(self).update(
            name=inner.name, what=inner.what, columns=inner.columns, want=inner.want,
            sinks=inner.sinks, recent=inner.recent,
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "inner" not in vars(self):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def can(self, model: Any, sites: Sites) -> Answer:
        """Ask the policy."""
        return self.inner.can(model, sites)

    def begin(self, model: Any, sites: Sites, budget: Budget) -> None:
        """Begin both."""
        super().begin(model, sites, budget)
        self.inner.begin(model, sites, self.budget)
        self._notes = self.inner if isinstance(self.inner, EvictByHistory) else None
        self._fewest = self.sinks + 1 if self.budget.share is not None and self.sinks else 1

    def end(self) -> None:
        """End both."""
        super().end()
        self.inner.end()

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Ask the policy, where it has its own memories."""
        return self.inner.memory(site, before) if isinstance(self.inner, Store) else None

    def score(self, step: Step) -> Tensor:
        """Ask the policy."""
        return self.inner.score(step)

    def slots(self, step: Step, spare: float = 0.0) -> Tensor | None:
        """Free a little more than needed, at single steps."""
        if step.prompt or step.layer is None:
            return self.inner.slots(step, spare)
        if self._notes is not None and not self._passed(step.layer):
            self._notes.note(step)
            return None
        return self.inner.slots(step, self.spare)

    def due(self, layer: KeyLayer) -> bool:
        """Return whether a step has something to note, or exceeds the budget."""
        return not self.budget.whole and (self._notes is not None or self._passed(layer))

    def _passed(self, layer: KeyLayer) -> bool:
        """Return whether the budget is exceeded, as far as is known without reading the keys."""
        if layer.padded or not self.inner.even:
            return True
        memory = layer.memory
        most = max(self.budget.of_row(memory.seen, self.token_bytes), self._fewest)
        return type(memory) is not Kept or memory.width > most
