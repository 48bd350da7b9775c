"""Policies over the pages of a server: the same contract as in `regard.shrink`, by request.

A policy is handed a call over the pages of one request, and what it keeps beside them (bounds of
pages, say) belongs to that request and layer. Pages themselves are the server's: a policy may
choose among them for a call, and not evict from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, fail
from regard.core.key_forms import Paged
from regard.core.keys import Keys
from regard.core.spans import Spans
from regard.memories.base import KeyMemory
from regard.memories.stores import TokenStore
from regard.models.site import Sites
from regard.policies.base import Policy, Step
from regard.policies.budget import Budget
from regard.policies.double_sparsity import DoubleSparsity
from regard.policies.evicting import Rolling, Streaming
from regard.policies.kinds import Calibrated, Evict, ModulePatch, Prefill, Select, Store
from regard.policies.registry import policy
from regard.policies.selecting import Quest, Selecting
from regard.policies.shrinking import Shrinking
from regard.run.executor import Answer, No, Yes
from regard.serving.vllm.server_settings import Shrink


class ServedPages(KeyMemory):
    """The pages of one request at one layer, as a policy reads them; the server fills them."""

    def __init__(self) -> None:
        self.pages: Paged | None = None
        self.seen = 0

    def keys(self) -> Keys:
        """Return the pages."""
        assert self.pages is not None
        return self.pages

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Refuse: the server writes keys."""
        self._refuse("extended")

    def forget(self, horizon: Spans) -> None:
        """Keep all: the server frees pages."""

    def crop(self, length: int) -> None:
        """Refuse: the server counts tokens."""
        self._refuse("cropped")

    def reorder(self, rows: Tensor) -> None:
        """Refuse: a request is one row."""
        self._refuse("reordered")

    @staticmethod
    def _refuse(what: str) -> None:
        fail(
            CapabilityError, "memory", f"pages of a server, to be {what}",
            "a policy that chooses among keys", "take one of quest, streaming, double_sparsity",
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of the pages of this request."""
        if self.pages is None:
            return 0
        each = self.pages.k[0].nbytes + self.pages.v[0].nbytes
        return each * self.pages.table.numel()


@dataclass
class PagedLayer:
    """What policies keep of one request at one layer: its pages, and stores beside them."""

    memory: ServedPages = field(default_factory=ServedPages)
    extra: dict[str, TokenStore] = field(default_factory=dict)
    extra_at: dict[str, int] = field(default_factory=dict)
    padded: bool = False
    # Tokens of the one row, [1].
    real: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))

    def arrive(self, keys: Paged, n: int) -> None:
        """Record the pages of a call whose newest `n` tokens are its queries."""
        seen = keys.m
        if seen - n != self.memory.seen:  # the request was preempted, and begins again
            self.extra, self.extra_at = {}, {}
        self.memory.pages, self.memory.seen = keys, seen
        self.real = keys.lengths[0]


class _Caches:
    """Says which layer of which request the call that is running belongs to."""

    layers: ClassVar[Sequence[Any]] = ()

    def __init__(self) -> None:
        self.now: PagedLayer | None = None

    def layer_of(self, call: Call) -> PagedLayer | None:
        """Return the layer of the call that is running."""
        return self.now


class PagedShrinking(Shrinking):
    """The stage of policies, over pages of a server."""

    def _can_cache(self, model: Any, sites: Sites) -> Answer:
        """Return yes: pages can be read and chosen from."""
        return Yes()

    def _new_caches(self, model: Any) -> Any:
        """Build what knows the layer of a call."""
        return _Caches()

    def serve(self, layer: PagedLayer | None) -> None:
        """Return which layer of which request comes next; nothing is left of a call that failed."""
        self.caches.now = layer
        self._steps.held = []


@dataclass
class SinksAndRecent(Select):
    """Read the first tokens and the newest: `streaming`, where keys are not evicted.

    Of `keep` tokens, `sinks` are the first ones; prompts attend to everything.
    """

    sinks: int = 4

    @property
    def most(self) -> int:
        """Tokens that a step reads at most."""
        return self.budget.of_row(1 << 40, self.token_bytes)

    @property
    def first(self) -> int:
        """First tokens among these."""
        tokens = Budget.of(self.keep).tokens
        return min(self.sinks, (self.most if tokens is None else tokens) - 1)

    def select(self, step: Step) -> Call:
        """Choose slots by position alone."""
        call, m, most = step.call, step.call.m, self.most
        if step.n > 1 or m <= most:
            return call
        line = torch.arange(m, device=call.q.device)
        slots = torch.cat((line[: self.first], line[m - (most - self.first) :]))
        step.slots = slots.expand(call.b, call.g, -1)
        return call


def paged_policy(asked: Shrink) -> Policy:
    """Build the policy that a server was asked for, as it works over pages.

    >>> paged_policy(Shrink("streaming", {"sinks": 2}, keep=64)).name
    'streaming'
    >>> paged_policy(Shrink("snapkv"))
    Traceback (most recent call last):
      ...
    regard.core.errors.CapabilityError: `policy 'snapkv'`: got a policy that evicts...
    """
    made = policy(asked.policy, **asked.settings)
    made.keep = asked.keep if made.keep is None else made.keep
    if isinstance(made, Rolling) and isinstance(made.inner, Streaming):
        if isinstance(made.keep, float) or "%" in str(made.keep):
            fail(
                RuleError, "keep", made.keep, "a number of tokens, or bytes",
                "pass keep=256, say: streaming of a share evicts by what was evicted before",
            )  # fmt: skip
        rolling, made = made, SinksAndRecent(made.sinks, keep=made.keep)
        made.name = rolling.name  # type: ignore[misc]
    reason = why_not_paged(made)
    if reason:
        fail(
            CapabilityError, f"policy {asked.policy!r}", reason,
            "a policy that chooses among keys, or tiles of a prompt",
            "take quest, double_sparsity, recycled, streaming, a_shape, vertical_slash or "
            "block_sparse; or shrink the model in transformers: regard.shrink",
        )  # fmt: skip
    return made


def why_not_paged(one: Policy) -> str:
    """Return why a policy cannot work over the pages of a server; nothing if it can."""
    if isinstance(one, Store) and not isinstance(one, Evict):
        return (
            "a policy that stores keys in a form of its own: a server's pages hold keys as the "
            "model made them"
        )
    if isinstance(one, Evict):
        return (
            "a policy that evicts other keys at each layer and head: a server frees a page only "
            "when no layer and no head of the request needs it, so nothing would be freed"
        )
    if isinstance(one, ModulePatch):
        return "a policy that runs modules of transformers otherwise"
    if isinstance(one, Calibrated) and one.needed:
        return "a policy that learns from a model of transformers first"
    if not isinstance(one, Selecting | Prefill | SinksAndRecent):
        return "a policy that has not been tried over pages"
    return ""


def reads_at_steps(one: Policy) -> bool:
    """Whether a policy chooses keys for single tokens by what the pages hold, and nothing else.

    What it keeps beside them (bounds of pages) is made of the keys when it is needed, so prompts
    need not pass it.
    """
    return isinstance(one, Quest | SinksAndRecent)


def needs_whole_prompt(one: Policy) -> str:
    """Return why a prompt must come in one piece, none of it cached; nothing if it need not."""
    if isinstance(one, Prefill):
        return "chooses tiles by the length of the prompt"
    if isinstance(one, DoubleSparsity) and not one.ranked:
        return "chooses channels by the queries of the prompt"
    return ""


def can_serve(one: Policy, *, chunks: bool, caches_prefixes: bool, guesses: bool) -> Answer:
    """Return whether a policy can work as a server is set up, or why not.

    `chunks` says that prompts may come in pieces, `caches_prefixes` that their beginnings may come
    from requests of before, `guesses` that several tokens are checked at once.

    >>> chosen = paged_policy(Shrink("a_shape", {}, 0.5))
    >>> can_serve(chosen, chunks=False, caches_prefixes=True, guesses=False).reason
    'a_shape chooses tiles by the length of the prompt: pass --no-enable-prefix-caching'
    """
    why = needs_whole_prompt(one)
    if guesses:
        return No(f"{one.name} chooses for single tokens: serve without speculative decoding")
    if why and caches_prefixes:
        return No(f"{one.name} {why}: pass --no-enable-prefix-caching")
    if why and chunks:
        return No(
            f"{one.name} {why}: pass --no-enable-chunked-prefill, and --max-num-batched-tokens of "
            "the longest prompt"
        )
    return Yes()
