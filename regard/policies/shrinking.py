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
from regard.core.keys import Dense
from regard.core.partial import Partial
from regard.core.result import Result
from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.memories.stores import Plain
from regard.models.forward import layer_of
from regard.models.pipelines import telling_by_text
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Policy, Step
from regard.policies.budget import Budget
from regard.policies.caching import can_cache
from regard.policies.counting import Costs
from regard.policies.placing import without_padding
from regard.policies.standing import stand
from regard.run.counting import COUNT
from regard.run.executor import No
from regard.run.runner import otherwise


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
        self._choosing = [p for p in self.policies if p.has("select")]
        self._at_steps = [p for p in self._choosing if p.at_steps]
        self._joining = [p for p in self.policies if p.has("joined")]
        self._attending = [p for p in self.policies if p.has("attend")]
        self._making = [p for p in self.policies if p.has("run")]
        self.runs = bool(self._attending or self._making)
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
        """What policies may know of a call, whatever its keys are."""
        site = call.site
        if layer is None:
            real = torch.full((call.b,), call.m, device=call.q.device)
            return Step(site, call, call.m, real)
        return Step(site, call, layer.memory.seen, layer.real, layer)

    def before(self, call: Call) -> Call:
        """Attend to what the memory keeps in place of the new keys; let policies choose of it."""
        if self.paused:
            return call
        layer = None if isinstance(self.caching, No) else self._layer_of(call)
        held = getattr(self._steps, "held", None)
        if held is None:
            held = self._steps.held = []
        if self._attending and layer is not None:
            step = self._step(call, layer)
            step.unread = True
        else:
            step = self._opened(call, layer)
        held.append(step)
        return step.call

    def _opened(self, call: Call, layer: Any) -> Step:
        """Take the keys of the memory, and let policies choose."""
        before = COUNT.flops
        if layer is not None:
            rule = without_padding(call.rule)
            call = Call(
                call.q, layer.memory.keys(), rule, call.q_positions, call.dropout, call.site,
                call.forward,
            )  # fmt: skip
        step = self._step(call, layer)
        step.whole = call
        single = call.q.shape[2] == 1 and layer is not None and step.seen > 1
        for one in self._at_steps if single else self._choosing:
            step.call = one.select(step)
        if step.slots is not None:
            step.call = step.call.replace(keys=step.call.keys.take(step.slots, full=True))
        # What it took to choose counts as well.
        step.spent = COUNT.flops - before
        return step

    def wants(self, call: Call) -> Sequence[str]:
        """Ask for weights, where a policy chooses by them after this step; for parts, to join."""
        if self.paused:
            return ()
        step = self._steps.held[-1]
        step.due = self._due(step)
        asked: list[str] = []
        if step.due and call.q.shape[2] == 1 and any(p.weighs for p in step.due):
            asked.append("weights")
        if self._joining:
            asked.append("lse")
        return asked

    def _due(self, step: Step) -> Sequence[Policy]:
        """Policies that choose what stays after a call."""
        if step.layer is None or not self._keeping:
            return ()
        if step.call.q.shape[2] > 1 or step.seen == 1:
            return self._keeping
        if not self._keeping_on:
            return ()
        return [p for p in self._keeping_on if p.due(step.layer)]

    def around(self, call: Call, run: Any) -> Result:
        """Let a policy attend by itself, or make something of the call in its own way."""
        found: Result
        if self.paused:
            found = run(call)
            return found
        step = self._steps.held[-1]
        if step.unread:
            result = self._by_policy(step, call) if run.plain else None
            if result is not None:
                return result
            opened = self._opened(call, step.layer)
            opened.due, opened.spent = step.due, opened.spent + step.spent
            self._steps.held[-1] = step = opened
            call = step.call
        for one in self._making:
            made = otherwise(call, one.name, lambda one=one: one.run(call))
            if made is not None:
                return made if run.plain else run(call)._replace(out=made.out, cost=made.cost)
        found = run(call)
        return found

    def _by_policy(self, step: Step, call: Call) -> Result | None:
        """Let a policy attend by itself."""
        for one in self._attending:
            found = otherwise(call, one.name, lambda one=one: one.attend(step))
            if found is not None:
                return found
        return None

    def after(self, call: Call, result: Result) -> Result:
        """Let policies add to the result and choose what stays, and the memory make it small."""
        if self.paused:
            return result
        step = self._steps.held.pop()
        before = COUNT.flops
        if self._joining:
            partial = Partial(result.out, result.lse)
            for one in self._joining:
                partial = one.joined(step, partial)
            result = result._replace(out=partial.out, lse=partial.lse)
        if step.layer is not None:
            step.weights = result.weights if call.q.shape[2] == 1 else None
            step.call = step.whole or step.call
            for one in step.due:
                slots = one.slots(step)
                if slots is not None:
                    step.memory.choose(slots)
            step.memory.settle()
        spent = step.spent + result.cost.flops + COUNT.flops - before
        self.costs.add(step.whole or call, step.seen, spent, step.dense)
        return result

    def _layer_of(self, call: Call) -> Any:
        """The layer of the cache that the keys of a call went to; None without a cache."""
        keys = call.keys
        found = layer_of(keys.k) if isinstance(keys, Dense) else None
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
