"""The base of policies, by which a pretrained model keeps fewer keys or attends to fewer."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, fail
from regard.models.site import Site, Sites
from regard.policies.budget import Budget
from regard.run.executor import Answer, Yes

if TYPE_CHECKING:
    from regard.models.cache import KeyLayer


@dataclass
class Step:
    """One call of attention at one site, and everything a policy may know about it.

    `call` has every key that is kept, those of this forward last; `n` of the `seen` tokens are
    this forward's. `real` [b] counts the tokens of each row that are not padding. `layer` is None
    where the model runs without a cache.
    """

    call: Call
    seen: int
    # Real tokens of each row [b], where there is no layer that counts them.
    counted: Tensor | None = None
    layer: KeyLayer | None = None
    # Pairs that the unchanged model would have computed here, if not those of `whole`.
    dense: float | None = None
    # Slots [b, g, c] of the keys that a single query reads, in any order; None for all of them.
    slots: Tensor | None = None
    # Weights of a decoding step [b, h, 1, m], where a policy wants them.
    weights: Tensor | None = None
    # The call over everything that is kept, before policies select from it.
    whole: Call | None = None
    # Policies that evict after this call.
    due: Sequence[Any] = ()
    # FLOPs that selection took.
    spent: float = 0.0
    # Whether the memory has not been read yet: a policy may attend by itself.
    unread: bool = False

    @property
    def site(self) -> Site:
        """The site of the call."""
        site: Site = (self.whole or self.call).site
        return site

    @property
    def real(self) -> Tensor:
        """Tokens of each row that are not padding, [b]."""
        if self.counted is not None:
            return self.counted
        assert self.layer is not None
        return self.layer.real

    @property
    def n(self) -> int:
        """The number of queries of this forward."""
        return self.call.q.shape[2]

    @property
    def prompt(self) -> bool:
        """Whether this is a prompt, or a chunk of one."""
        return self.call.q.shape[2] > 1 or self.seen == 1

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
            return torch.arange(call.m, device=call.q.device).expand(call.b, call.g, -1)
        return (at[:, None] if at.dim() == 2 else at).expand(call.b, call.g, -1)


# The hooks of each kind, by name.
_hooks: dict[str, list[str]] = {}
KINDS = "regard.policies.kinds"
P = TypeVar("P", bound=type)


def hooks_of(*names: str) -> Callable[[P], P]:
    """Declare the hooks of a kind of policies: no class of another kind may define them."""

    def note(kind: P) -> P:
        for name in names:
            _hooks.setdefault(name, []).append(kind.__name__)
        return kind

    return note


@dataclass
class Policy(ABC):  # noqa: B024
    """Base of the kinds of policies (`regard.policies.kinds`); derive from one of these.

    `keep` is this policy's own budget (a share, tokens or bytes), where it differs from that of
    `shrink`. `what` is what it does: it "evicts" keys, "stores" them smaller, computes less of a
    "prompt", reads fewer keys when "decoding", "shares" among layers and heads, or is for models
    of "images".
    """

    what: ClassVar[str] = ""
    name: ClassVar[str] = ""
    # Whether the policy works on what is kept, and so needs a cache.
    needs_cache: ClassVar[bool] = False
    # What is counted by columns of the batch, padding included ("tiles", "pages"), so that a row
    # that begins with padding may differ from the row alone. "" where it does not.
    columns: ClassVar[str] = ""

    keep: Any = field(default=None, kw_only=True)

    def __init_subclass__(cls, **more: Any) -> None:
        """Refuse a class with hooks of a kind that it does not derive from."""
        super().__init_subclass__(**more)
        above = {base.__name__ for base in cls.__mro__}
        for name, x in vars(cls).items():
            kinds = _hooks.get(name, []) if callable(x) else []
            if kinds and above.isdisjoint(kinds) and cls.__module__ != KINDS:
                fail(
                    RuleError, f"{cls.__name__}.{name}", "a hook of another kind of policy",
                    f"a class that derives from {' or '.join(kinds)}",
                    f"derive {cls.__name__} from {KINDS}.{kinds[0]}, or rename the method",
                )  # fmt: skip

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the policy supports a model, or why not."""
        return Yes()

    def begin(self, model: Any, sites: Sites, budget: Budget) -> None:
        """Prepare for a model; `budget` is this policy's."""
        self.model, self.sites = model, sites
        self.budget = budget if self.keep is None else Budget.of(self.keep)
        size = next((p.element_size() for p in model.parameters()), 4)
        self.token_bytes = float(
            sum(2 * size * (s.kv_heads or 1) * (s.head_size or 64) for s in sites)
        )
        # What is kept from one call to another, until `end`.
        self.held: dict[str, Any] = {}
        self.depth = {s.layer: place for place, s in enumerate(sites)}

    def end(self) -> None:
        """Release the model, and what was kept of it."""
        self.model, self.held = None, {}

    def rows(self, step: Step) -> Tensor:
        """Count the tokens that a head may keep now, [b]."""
        return self.budget.of_rows(step.real, self.token_bytes)

    def settings(self) -> dict[str, Any]:
        """Return the settings, as a calibration file stores them."""
        held = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in held if f.init and f.name != "keep"}
