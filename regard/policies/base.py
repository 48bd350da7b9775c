"""What a policy is: how a model that is already trained keeps less, or attends to less."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.partial import Partial
from regard.memories.base import KeyMemory
from regard.memories.stores import StoreKind
from regard.models.site import Site, Sites
from regard.policies.budget import Budget
from regard.run.executor import Answer, Yes

if TYPE_CHECKING:
    from regard.models.cache import KeyLayer


@dataclass
class Step:
    """One call of attention at one site: what a policy may know.

    `call` has every key that is kept, this forward's among them; the last `n` tokens of the `seen`
    ones are this forward's. `real` [b] counts the tokens of each row that are no padding.
    `layer` is None where the model runs without a cache.
    """

    site: Site
    call: Call
    seen: int
    real: Tensor
    layer: KeyLayer | None = None
    # Pairs that the whole model would have computed here, if others than these queries and keys.
    dense: float | None = None
    # Slots [b, g, c] of the keys that a single query reads, in any order; None for all of them.
    slots: Tensor | None = None
    # Weights of a single step [b, h, 1, m], where a policy `weighs`.
    weights: Tensor | None = None
    # The call over all that is kept, before anything was chosen.
    whole: Call | None = None
    # Policies that choose what stays after this call.
    due: Sequence[Any] = ()
    # Floating point operations that choosing took.
    spent: float = 0.0
    # Whether the memory was not read: a policy may attend by itself.
    unread: bool = False
    # What policies that no longer count pairs may still write.
    pairs: float | None = None

    @property
    def n(self) -> int:
        """Queries of this forward."""
        return self.call.n

    @property
    def prompt(self) -> bool:
        """Whether this is a prompt, or a piece of one."""
        return self.n > 1 or self.seen == 1

    @property
    def first(self) -> bool:
        """Whether nothing was kept before this forward."""
        return self.seen == self.n

    @property
    def memory(self) -> Any:
        """The memory of the layer."""
        assert self.layer is not None
        return self.layer.memory

    @property
    def at(self) -> Tensor | None:
        """Positions of the keys of the memory, [b, m] or [b, g, m]; None where key j is at j."""
        return (self.whole or self.call).keys.positions

    @property
    def positions(self) -> Tensor:
        """Positions of the keys, [b, g, m]; -1 where there is none."""
        at, call = self.at, self.whole or self.call
        if at is None:
            return torch.arange(call.m, device=call.k.device).expand(call.b, call.g, -1)
        return (at[:, None] if at.dim() == 2 else at).expand(call.b, call.g, -1)


@dataclass
class Policy:
    """Base of all policies; override what the paper changes.

    `keep` is this policy's own budget (a share, tokens or bytes), where it differs from that of
    `shrink`. What `what` names: "evicts" keys, "stores" them smaller, computes less of a
    "prompt", reads fewer keys when "decoding", "shares" among layers and heads, or serves models
    that make "images".
    """

    what: ClassVar[str] = ""
    name: ClassVar[str] = ""
    # Whether the policy does something to what is kept, and so asks for a cache.
    needs_cache: ClassVar[bool] = True
    # Whether `slots` has something to say at every step, and not after prompts alone.
    every_step = False
    # Whether `slots` of single steps looks at their weights.
    weighs: ClassVar[bool] = False
    # Whether what a call attends to is changed at single steps after the prompt, too.
    at_steps: ClassVar[bool] = True
    # Whether the policy must be calibrated before it can run.
    calibrated: ClassVar[bool] = False
    # What a calibration reads: "texts" (ids [1, n] each), or "answers" (ids, and how many tokens at
    # their end answer what the text has hidden).
    learns_from: ClassVar[str] = "texts"
    # Kinds of sites whose modules `stand_in` runs; "model" is the whole forward.
    stands: ClassVar[tuple[str, ...]] = ()
    # What is counted by columns of the batch, padding included ("tiles", "pages"): a row that
    # begins with padding may come out otherwise than alone. "" where a row is what it is alone.
    columns: ClassVar[str] = ""
    # Policies whose calibrations serve this one as well.
    takes: ClassVar[tuple[str, ...]] = ()

    keep: Any = field(default=None, kw_only=True)

    def can(self, model: Any, sites: Sites) -> Answer:
        """Say whether the policy can serve a model, or why not."""
        return Yes()

    def begin(self, model: Any, sites: Sites, budget: Budget) -> None:
        """Get ready; `budget` is this policy's."""
        self.model, self.sites = model, sites
        self.budget = budget if self.keep is None else Budget.of(self.keep)
        size = next((p.element_size() for p in model.parameters()), 4)
        self.token_bytes = float(
            sum(2 * size * (s.kv_heads or 1) * (s.head_size or 64) for s in sites)
        )
        self.depth = {s.layer: place for place, s in enumerate(sites)}

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Make a memory for a site, if the policy needs one of its own; `before` are those of
        earlier layers.
        """
        return None

    def stores(self, site: Site) -> tuple[StoreKind, StoreKind] | None:
        """Say what keys and values are put in, if the policy has its own way."""
        return None

    def select(self, step: Step) -> Call:
        """Choose what is attended to: give the call with a smaller support, or fewer keys."""
        return step.call

    def attend(self, step: Step) -> Tensor | None:
        """Attend by itself, [b, h, n, e], where no call can say what is meant; None to leave it.

        Asked only where no other stage stands beside. The call has the new keys, as the model made
        them: what is kept is in `step.memory`.
        """
        return None

    def run(self, call: Call) -> Tensor | None:
        """Give what a call gives [b, h, n, e], if the policy runs it in a way of its own."""
        return None

    def stand_in(
        self, site: Site | None, run: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run the module of a site (None: the model), or give something in its place.

        Asked of the kinds of sites in `stands`: the projections of what is not run are saved too.
        """
        return run(*args, **kwargs)

    def due(self, layer: KeyLayer) -> bool:
        """Say whether `slots` is to be asked after a single step; where not, nothing is prepared.

        >>> Policy().due(None)
        False
        """
        return self.every_step

    def joined(self, step: Step, partial: Partial) -> Partial:
        """Add what the call that `select` gave has left out."""
        return partial

    def slots(self, step: Step) -> Tensor | None:
        """Choose the slots [b, g, c] that stay after this call; None where all do."""
        return None

    def has(self, *hooks: str) -> bool:
        """Whether the policy says something of its own at one of these hooks.

        >>> Policy().has("select", "slots")
        False
        """
        return any(getattr(type(self), hook) is not getattr(Policy, hook) for hook in hooks)

    def end(self) -> None:
        """Let go of the model."""
        self.model = None

    def found(self) -> dict[str, Any]:
        """Give what calibration found, as a file keeps it."""
        return {}

    def take(self, found: dict[str, Any]) -> None:
        """Take what a calibration found."""

    def rows(self, step: Step) -> Tensor:
        """Tokens that a head may keep now, [b]."""
        return self.budget.of_rows(step.real, self.token_bytes)

    def settings(self) -> dict[str, Any]:
        """Give the settings, as a calibration file keeps them."""
        held = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in held if f.name != "keep"}


__all__ = ["Policy", "Step"]
