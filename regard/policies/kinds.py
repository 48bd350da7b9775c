"""The five kinds of policies, each with its abstract methods; `Calibrated` beside them.

A policy derives from one kind or more. The methods of a kind are abstract, so a policy that lacks
one cannot be built, and a class with a hook of a kind that it does not derive from is refused when
it is defined. Wrap a policy to change when it acts (`timing.EachStep`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.partial import Partial
from regard.core.support import Tiles
from regard.memories.base import KeyMemory
from regard.models.site import Site, Sites
from regard.policies.base import Policy, Step, hooks_of
from regard.policies.caching import causal_only
from regard.policies.scoring import best, rank_of
from regard.policies.tiling import causal_tiles, density, tile_places
from regard.run.executor import Answer

if TYPE_CHECKING:
    from regard.models.cache import KeyLayer


# An evicting step frees at least this many tokens, so that the next steps need not evict.
FREED = 4


@hooks_of("score", "slots")
@dataclass
class Evict(Policy):
    """Evict keys after a prompt: every head keeps those of the highest `score`.

    The first `sinks` tokens and the newest `recent` (a number, or a share of what may be kept) stay
    before all others. `want` names what a decoding step must return, "weights" say.
    """

    what: ClassVar[str] = "evicts"
    needs_cache: ClassVar[bool] = True
    want: ClassVar[tuple[str, ...]] = ()
    # Whether all heads and layers keep equally many keys.
    even: ClassVar[bool] = True

    sinks: int = 0
    recent: float = 0

    @abstractmethod
    def score(self, step: Step) -> Tensor:
        """Return the score of each key, [b, g, m]."""

    def slots(self, step: Step, spare: float = 0.0) -> Tensor | None:
        """Return the slots [b, g, c] that stay after this call; None where all do.

        `spare` is a share of the budget that is freed beside what must go (0: nothing is), `FREED`
        tokens at least where these are no more than an eighth of it.
        """
        if self.budget.whole:
            return None
        rows, at = self._room(step), step.positions
        held = (at >= 0).sum(-1)
        over = (held > rows[:, None]).any(-1) if self.even else held.sum(-1) > rows * held.shape[1]
        if self.even and not bool(over.any()):
            return None
        if spare:  # only in rows that exceed their own budget, so that rows are independent
            freed = (rows * spare).long().maximum((rows * 0.125).long().clamp(max=FREED))
            rows = torch.where(over, (rows - freed).clamp(min=1), rows)
        score = self.score(step).clone()
        rank, real = rank_of(at), (at >= 0)
        newest = at >= step.seen - self._newest(rows)[:, None, None]
        top = torch.finfo(score.dtype).max
        score = torch.where(real & newest, top / 2, score)
        score = torch.where(real & (rank < self.sinks), top, score)
        counts = rows[:, None].expand(-1, step.call.g)
        if isinstance(self, EvictUnevenly):
            counts = self.counts(step, rows, score)
        return best(score, counts, at)

    def _room(self, step: Step) -> Tensor:
        """Return how many tokens a head may keep now, [b]: always more than the sinks.

        A share of a short first chunk would evict the sinks for good.
        """
        rows = self.rows(step)
        if self.budget.share is None or not self.sinks:
            return rows
        return rows.clamp(min=self.sinks + 1).minimum(step.real)

    def _newest(self, rows: Tensor) -> Tensor:
        """Count the newest tokens that each row keeps in any case, [b]."""
        if isinstance(self.recent, float):
            return (rows * self.recent).long().clamp(min=1)
        return (rows - self.sinks).clamp(min=min(1, self.recent), max=self.recent)


@hooks_of("counts")
class EvictUnevenly(Evict):
    """Evict, with a different number of keys for each head or layer."""

    even: ClassVar[bool] = False

    @abstractmethod
    def counts(self, step: Step, rows: Tensor, score: Tensor) -> Tensor:
        """Return how many keys each head keeps, [b, g], of `rows` [b] on average."""


@hooks_of("note")
class EvictByHistory(Evict):
    """Evict by statistics of all forwards so far."""

    @abstractmethod
    def note(self, step: Step) -> None:
        """Record statistics for later scores; called for every forward."""

    def slots(self, step: Step, spare: float = 0.0) -> Tensor | None:
        """Record, then choose."""
        if not self.budget.whole:
            self.note(step)
        return super().slots(step, spare)


@hooks_of("due")
class EvictAtSteps(Evict):
    """Evict at decoding steps as well, not only after prompts."""

    @abstractmethod
    def due(self, layer: KeyLayer) -> bool:
        """Return whether to call `slots` after a step; if not, nothing is prepared for it."""


@hooks_of("memory")
class Store(Policy):
    """Keep keys and values in a memory of its own: smaller, shared, or elsewhere."""

    what: ClassVar[str] = "stores"
    needs_cache: ClassVar[bool] = True

    @abstractmethod
    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Build the memory of a site, or None for the usual one; `before` are those of earlier
        layers.
        """


@hooks_of("attend")
class StoreAndAttend(Store):
    """Keep keys where no executor can read them, and attend to them there."""

    @abstractmethod
    def attend(self, step: Step) -> Tensor | None:
        """Attend: [b, h, n, e], or None to run the call as usual. The call has the model's new
        keys; the kept ones are in `step.memory`.
        """


@hooks_of("select")
class Select(Policy):
    """Change what one call attends to: fewer keys, or a smaller support; all are kept."""

    what: ClassVar[str] = "decoding"
    needs_cache: ClassVar[bool] = True

    @abstractmethod
    def select(self, step: Step) -> Call:
        """Return the call with fewer keys, or a smaller support."""


@hooks_of("join")
class SelectAndJoin(Select):
    """Select keys, and merge in attention to others."""

    @abstractmethod
    def join(self, step: Step, partial: Partial) -> Partial:
        """Return the partial result merged with attention to what `select` left out."""


@hooks_of("run")
class SelectAndRun(Select):
    """Select, and run some calls in a way that no rule expresses."""

    @abstractmethod
    def run(self, call: Call) -> Tensor | None:
        """Return the output of a call, [b, h, n, e], or None to run it as usual."""


@hooks_of("tiles", "select", "always", "density")
@dataclass
class Prefill(Policy):
    """Compute chosen tiles of `block` tokens of a prompt; decoding and short prompts are dense.

    The diagonal and the first column of tiles are always computed.
    """

    what: ClassVar[str] = "prompt"
    columns: ClassVar[str] = "tiles"

    block: int = 64
    # Prompts of fewer tiles than this are dense.
    least: int = 4

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model has causal self-attention only."""
        return causal_only(sites)

    @abstractmethod
    def tiles(self, call: Call, keep: float) -> Tensor:
        """Return which tiles each head computes, bool [b or 1, h, t_q, t_k]."""

    def select(self, step: Step) -> Call:
        """Add the chosen tiles to the rule of a prompt."""
        call = step.call
        # Tiles are of positions: where keys were evicted, slots are none.
        moved = call.m != step.seen or call.rule.offset + call.n != call.m
        if self.budget.whole or moved or call.n < self.least * self.block:
            return call
        chosen = self.always(call) | self.tiles(call, self.density(call))
        chosen = chosen & causal_tiles(call, self.block)
        first = call.rule.offset // self.block * self.block
        support = Tiles(chosen, (self.block, self.block), first)
        return call.replace(rule=call.rule.replace(support=call.rule.support & support))

    def density(self, call: Call) -> float:
        """Return the share of the causal pairs that may be computed."""
        return density(self.budget, self.token_bytes, call)

    def always(self, call: Call) -> Tensor:
        """Return the tiles that are computed in any case: the diagonal and the first column."""
        rows, cols = tile_places(call, self.block)
        return ((rows[:, None] == cols) | (cols == 0))[None, None]


@hooks_of("patch")
class ModulePatch(Policy):
    """Replace or skip whole modules, projections included.

    `patches` names kinds of sites whose modules are patched; "model" is the whole forward.
    """

    patches: ClassVar[tuple[str, ...]]

    @abstractmethod
    def patch(
        self, site: Site | None, run: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run the module of a site (None: the model), or return a replacement of its output."""


class Calibrated(ABC):
    """A mixin: a policy that first learns from a model, and stores what it learned in a file."""

    # Whether it cannot run without a calibration.
    needed: ClassVar[bool] = True
    # What it learns from: "texts" (ids [1, n] each), or "answers" (ids, and how many tokens at the
    # end are the answer).
    learns_from: ClassVar[str] = "texts"
    # Policies whose calibrations this one accepts as well.
    accepts: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def learn(
        self, model: Any, inputs: Any, state: dict[str, Any],
        keep: Callable[[dict[str, Any]], Any],
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """Learn from a model; after each step store the state by `keep`, and yield progress."""

    @abstractmethod
    def found(self) -> dict[str, Any]:
        """Return what was learned, for a file."""

    @abstractmethod
    def take(self, found: dict[str, Any]) -> None:
        """Load what a file has stored."""


KINDS: tuple[type[Policy], ...] = (Evict, Store, Select, Prefill, ModulePatch)
