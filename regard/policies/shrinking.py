"""The stage that policies work in: it reads memories for attention, and lets policies choose."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail, shape_of
from regard.core.heads import take_keys
from regard.core.partial import Partial
from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.memories.meeting import meet
from regard.memories.stores import Plain
from regard.models.engine import attended, timed, whole
from regard.models.forward import layer_of
from regard.models.pipelines import telling_by_text
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Policy, Step
from regard.policies.budget import Budget
from regard.policies.caching import can_cache
from regard.policies.counting import Costs
from regard.policies.placing import placed, without_padding
from regard.policies.standing import stand
from regard.run.executor import No
from regard.run.few import over_slots

# Hooks with which a policy changes what a call attends to, or how.
CHOOSING = ("select", "attend", "run", "joined")


class Shrinking(Stage):
    """Policies at work on a model with a cache."""

    def __init__(self, policies: Sequence[Policy], keep: Any = 0.25) -> None:
        super().__init__()
        self.policies, self.budget = list(policies), Budget.of(keep)
        self.active = False
        # Whether the user was told that guessed tokens may come out otherwise.
        self._told = False
        # Whether forwards pass as if the model were whole, for comparison.
        self.paused = False
        # The layers of the cache that was used last, by layer of the model.
        self.layers: list[Any] = []
        self._by_layer: dict[int | None, Site] = {}
        self._steps = threading.local()
        # The pipeline that the model is part of, if it was given.
        self.pipeline: Any = None
        self._undo = ExitStack()

    @property
    def name(self) -> str:
        """Name in errors."""
        return f"shrink({', '.join(p.name for p in self.policies)})"

    def begin(self, model: Any, sites: Sites) -> None:
        """Ask every policy whether it can serve the model, then stand before its forwards."""
        self.caching = can_cache(model, sites)
        for one in self.policies:
            lacking = one.needs_cache and isinstance(self.caching, No)
            answer = self.caching if lacking else one.can(model, sites)
            if isinstance(answer, No):
                fail(
                    CapabilityError, f"policy {one.name!r}",
                    f"{type(model).__name__}, {answer.reason}", "a model that it can serve",
                    "take another policy: regard.policies.known()",
                )  # fmt: skip
        self._need_company()
        self.model, self.sites = model, sites
        self._by_layer = {site.layer: site for site in sites}
        self.costs = Costs(sites, causal=not isinstance(self.caching, No))
        # Those that have something to say of a single step after the prompt, and of what it keeps.
        self._at_steps = [p for p in self.policies if p.at_steps and p.has(*CHOOSING)]
        self._keeping = [p for p in self.policies if p.has("slots")]
        self._keeping_on = [p for p in self._keeping if p.every_step]
        for one in self.policies:
            one.begin(model, sites, self.budget)
        self._takes = list(inspect.signature(model.forward).parameters)
        self._undo.callback(stand(model, sites, self))
        if self.pipeline is not None:
            self._undo.enter_context(telling_by_text(self.pipeline, model))
        self.active = True

    def _need_company(self) -> None:
        """Refuse policies that want the same thing in different ways."""
        for what, hook in (
            ("memories", "memory"), ("stores", "stores"), ("keys", "slots"), ("weights", "run"),
        ):  # fmt: skip
            own = [p.name for p in self.policies if p.has(hook)]
            if len(own) > 1:
                fail(
                    CapabilityError, "policies", f"{' and '.join(own)}, each with its own {what}",
                    "policies that choose different things",
                    "stack one that evicts, one that stores and one for prompts",
                )  # fmt: skip

    def end(self) -> None:
        """Let go of the model; caches made here refuse to go on."""
        self.active = False
        self._undo.close()
        for one in self.policies:
            one.end()

    # The cache

    def new_memory(self, layer: Any) -> KeyMemory:
        """Make the memory of one layer of a cache."""
        site = self._by_layer[layer.number]
        before = [one.memory for one in layer.cache[: layer.number]]
        for one in self.policies:
            made = one.memory(site, before)
            if made is not None:
                return made
        for one in self.policies:
            kinds = one.stores(site)
            if kinds is not None:
                return Kept(*kinds)
        return Kept(Plain)

    def new_layers(self) -> list[Any]:
        """Make the layers of a cache."""
        from regard.models.cache import KeyLayer

        made: list[Any] = []
        for number in range(len(self.sites)):
            made.append(KeyLayer(self, number, made))
        return made

    def tokens_were_checked(self) -> None:
        """Warn once that guessed tokens, which are checked together, may come out otherwise.

        A cache cropped after several tokens at once is one of prompt lookup or an assistant.
        """
        lossy = [p.name for p in self.policies if not p.budget.whole]
        if self._told or not lossy:
            return
        self._told = True
        warnings.warn(
            f"{self.name}: several tokens were checked at once, as prompt lookup and assistants "
            f"do. {' and '.join(lossy)} may attend to other keys for several tokens than for one "
            "at a time, so the text may differ from that of generate() without them. "
            "Fix: generate without prompt_lookup_num_tokens and assistant_model to get that text.",
            stacklevel=2,
        )  # fmt: skip

    def arrive(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put our layers in the cache of a forward that begins, and tell them what is padding."""
        if isinstance(self.caching, No) or not self.active:
            return None
        from transformers.cache_utils import Cache, DynamicCache

        from regard.models.cache import KeyLayer

        self._steps.held = []
        if self.paused:
            return None
        given = {**dict(zip(self._takes, args, strict=False)), **kwargs}
        cache, use = given.get("past_key_values"), given.get("use_cache")
        if cache is None and use is None:
            use = getattr(model.config, "use_cache", True)
        if cache is None and not use:
            if any(p.needs_cache for p in self.policies):
                fail(
                    CapabilityError, "use_cache", "False", "a cache, which the policy works on",
                    "leave use_cache out",
                )  # fmt: skip
            return None
        if cache is None:
            cache = Cache(layers=self.new_layers())
            kwargs = {**kwargs, "past_key_values": cache, "use_cache": True}
        elif not isinstance(cache, Cache):
            fail(
                CapabilityError, "past_key_values", shape_of(cache), "a transformers Cache",
                "leave it out, or pass DynamicCache()",
            )  # fmt: skip
        ours = [x for x in cache.layers if isinstance(x, KeyLayer) and x.owner is self]
        if not ours:
            seen = int(cache.get_seq_length()) if cache.layers else 0
            if not isinstance(cache, DynamicCache) or seen:
                fail(
                    CapabilityError, "past_key_values",
                    f"a {type(cache).__name__} with {seen} tokens seen",
                    "a DynamicCache in which nothing is yet",
                    "start the text within `with regard.shrink(...)`, with a dynamic cache",
                )  # fmt: skip
            cache.layers, cache.layer_class_to_replicate = self.new_layers(), None
            cache.offloading = False
        mask = given.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            fail(
                CapabilityError, "attention_mask", shape_of(mask),
                "which tokens are real, [b, tokens], or nothing",
                "masks by pair need every key in its place: detach for this call",
            )  # fmt: skip
        x: Any = given.get("inputs_embeds")
        n = (given["input_ids"] if x is None else x).shape[1]
        valid = None if mask is None or bool(mask[:, -n:].all()) else mask[:, -n:].bool()
        self.layers = list[Any](cache.layers)
        for layer in self.layers:
            layer.valid, layer.places = valid, given.get("position_ids")
        return args, kwargs

    # The stage

    def _step(self, call: Call, layer: Any) -> Step:
        """What policies may know of a call whose keys are those of the memory."""
        site = call.site
        if layer is None:
            real = torch.full((call.b,), call.m, device=call.q.device)
            return Step(site, call, call.m, real)
        return Step(site, call, layer.memory.seen, layer.real, layer)

    def before(self, call: Call) -> Call:
        """Read the memory in place of the new keys, and let policies choose among them."""
        if self.paused:
            return call
        step = self._opened(call, self._layer_of(call))
        if step.slots is not None:
            k, v = (take_keys(x, step.slots) for x in (step.call.k, step.call.v))
            step.call = step.call.replace(k=k, v=v)
        held = getattr(self._steps, "held", None)
        if held is None:
            held = self._steps.held = []
        held.append(step)
        return step.call

    def _opened(self, call: Call, layer: Any) -> Step:
        """Read the memory, and let policies choose."""
        at = None
        if layer is not None:
            k, v, at = layer.memory.read()
            call = placed(call, k, v, at)
        step = self._step(call, layer)
        step.at = at
        step.call = self._selected(step)
        return step

    def _selected(self, step: Step) -> Call:
        whole = step.call
        for one in self.policies:
            step.call = one.select(step)
        chosen, step.call = step.call, whole
        pairs = self.costs.pairs(chosen, chosen.m) if step.pairs is None else step.pairs
        self.costs.add(whole, step.seen, pairs, step.dense)
        return chosen

    def after(self, call: Call, partial: Partial) -> Partial:
        """Let policies choose what stays, and the memory make itself small."""
        if self.paused:
            return partial
        step = self._steps.held.pop()
        partial = self._joined(step, partial)
        self._close(step)
        out = self._made(call)
        return partial if out is None else Partial(out, None)

    def _joined(self, step: Step, partial: Partial) -> Partial:
        """Let policies add what the call has left out."""
        for one in self.policies:
            partial = one.joined(step, partial)
        return partial

    def _made(self, call: Call) -> Tensor | None:
        """What a policy makes of a call in its own way."""
        made = (p.run(call) for p in self.policies if p.has("run"))
        return next((x for x in made if x is not None), None)

    def _close(self, step: Step) -> None:
        if step.layer is None:
            return
        self._keep(step, self._keeping)
        step.memory.settle()

    def _keep(self, step: Step, policies: Sequence[Policy]) -> None:
        """Let policies choose what stays."""
        for one in policies:
            slots = one.slots(step)
            if slots is not None:
                step.memory.choose(slots)

    def stand_in(self, call: Call) -> Tensor | None:
        """Run a call that no other stage looks at: few policies ask for its log-sum-exp."""
        if self.paused:
            return attended(call)
        layer = None if isinstance(self.caching, No) else self._layer_of(call)
        plain = call.n == 1 and not self._at_steps and layer is not None
        out = self._plain_step(call, layer) if plain else None
        if out is not None:
            return out
        call = timed(call)
        if layer is not None and not plain:
            out = self._by_policy(call, layer)
            if out is not None:
                return out
        step = self._opened(call, layer)
        out = self._made(step.call)
        if out is None and any(p.has("joined") for p in self.policies):
            out = self._joined(step, whole(step.call)).out
        if out is None:
            some = step.slots
            out = attended(step.call) if some is None else over_slots(step.call, some)
        self._close(step)
        return out

    def _by_policy(self, call: Call, layer: Any) -> Tensor | None:
        """Let a policy attend by itself."""
        able = [p for p in self.policies if p.has("attend")]
        step = self._step(call, layer) if able else None
        for one in able:
            assert step is not None
            found = one.attend(step)
            if found is not None:
                self.costs.add(call, step.seen, float(step.pairs or 0))
                self._close(step)
                return found
        return None

    def _plain_step(self, call: Call, layer: Any) -> Tensor | None:
        """Attend to all that is kept, with no word on where it stands, if the rule allows that."""
        memory, rule = layer.memory, without_padding(call.rule)
        if memory.seen == 1 or not rule.placeless:
            return None
        if rule is not call.rule:
            call = call.replace(rule=rule)
        due = [p for p in self._keeping_on if p.due(layer)]
        met = meet(call, memory, weigh=any(p.weighs for p in due))
        if met is None:
            return None
        self.costs.add(call, memory.seen, met.keys)
        if due:
            k, v, at = memory.read()
            step = self._step(call.replace(k=k, v=v), layer)
            step.at, step.weights = at, met.weights
            self._keep(step, due)
        memory.settle()
        return met.out

    def _layer_of(self, call: Call) -> Any:
        """The layer of the cache that the keys of a call went to; None without a cache."""
        found = layer_of(call.k)
        if found is None and self.layers and any(x.memory.seen for x in self.layers):
            last = self.layers[self._number(call.site)]
            if getattr(last, "unread", False):
                fail(
                    CapabilityError, self.name, "keys that another stage has changed",
                    "keys as the model made them", "put the other stage after shrink, or leave it",
                )  # fmt: skip
        if found is not None:
            found.unread = False
        return found if found is None or found.owner is self else None

    def _number(self, site: Any) -> int:
        return next((i for i, s in enumerate(self.sites) if s == site), 0)


__all__ = ["Shrinking"]
