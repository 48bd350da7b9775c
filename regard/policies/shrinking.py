"""The stage that policies work in: it reads memories for attention, and lets policies choose."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail, shape_of
from regard.core.heads import gather_heads
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.support import Both, Causal, Everything, Padding, Support
from regard.memories.base import KeyMemory
from regard.memories.kept import Kept
from regard.memories.stores import Plain
from regard.models.engine import attended, whole
from regard.models.pipelines import telling_by_text
from regard.models.site import Site, Sites
from regard.models.stage import Stage
from regard.policies.base import Policy, Step
from regard.policies.budget import Budget
from regard.policies.standing import stand
from regard.run.executor import No, Yes


@dataclass
class Spent:
    """What one site has cost so far: FLOPs of attention, and what dense ones would have been.

    `last` are the FLOPs that its last call would have taken densely.
    """

    flops: float = 0.0
    dense: float = 0.0
    last: float = 0.0


class Shrinking(Stage):
    """Policies at work on a model with a cache."""

    def __init__(self, policies: Sequence[Policy], keep: Any = 0.25) -> None:
        super().__init__()
        self.policies, self.budget = list(policies), Budget.of(keep)
        self.active = False
        # Whether forwards pass as if the model were whole, for comparison.
        self.paused = False
        self.spent: dict[Site, Spent] = {}
        # Calls of attention that were counted.
        self.counted = 0
        # The layers of the cache that was used last, by layer of the model.
        self.layers: list[Any] = []
        self._by_layer: dict[int | None, Site] = {}
        self._steps = threading.local()
        self._hook: Any = None
        # The pipeline that the model is part of, if it was given.
        self.pipeline: Any = None
        self._undo = ExitStack()

    @property
    def name(self) -> str:
        """Name in errors."""
        return f"shrink({', '.join(p.name for p in self.policies)})"

    def begin(self, model: Any, sites: Sites) -> None:
        """Ask every policy whether it can serve the model, then stand before its forwards."""
        self.caching = _caches(model, sites)
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
        self.spent = {site: Spent() for site in sites}
        for one in self.policies:
            one.begin(model, sites, self.budget)
        if not isinstance(self.caching, No):
            self._hook = model.register_forward_pre_hook(self._enter, with_kwargs=True)
        self._undo.callback(stand(model, sites, self))
        if self.pipeline is not None:
            self._undo.enter_context(telling_by_text(self.pipeline, model))
        self.active = True

    def _need_company(self) -> None:
        """Refuse policies that want the same thing in different ways."""
        for what, hook in (
            ("memories", "memory"), ("stores", "stores"), ("keys", "slots"), ("weights", "run"),
        ):  # fmt: skip
            own = [
                p.name for p in self.policies if getattr(type(p), hook) is not getattr(Policy, hook)
            ]
            if len(own) > 1:
                fail(
                    CapabilityError, "policies", f"{' and '.join(own)}, each with its own {what}",
                    "policies that choose different things",
                    "stack one that evicts, one that stores and one for prompts",
                )  # fmt: skip

    def end(self) -> None:
        """Let go of the model; caches made here refuse to go on."""
        self.active = False
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
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

    def _enter(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put our layers in the cache of a forward that begins, and tell them what is padding."""
        from transformers.cache_utils import Cache, DynamicCache

        from regard.models.cache import KeyLayer

        self._steps.held = []
        if self.paused:
            return None
        names = list(inspect.signature(model.forward).parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
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
        pairs = self._pairs(chosen, chosen.m) if step.pairs is None else step.pairs
        self._count(whole, step.seen, pairs, step.dense)
        return chosen

    def _count(self, call: Call, seen: int, pairs: float, dense: float | None = None) -> None:
        """Add up FLOPs: of the pairs that are computed, and of all that a full model computes."""
        self.counted += 1
        each, whole = 2.0 * call.b * call.h * (call.d + call.e), self._pairs(call, seen)
        spent = self.spent.setdefault(call.site, Spent())
        spent.flops += each * pairs
        spent.dense += each * (whole if dense is None else dense)
        spent.last = each * whole

    def _pairs(self, call: Call, m: int) -> float:
        """Pairs of one head and row among the newest queries and m keys: causal, or all."""
        n, support = call.n, call.rule.support
        parts = support.parts if isinstance(support, Both) else (support,)
        causal = isinstance(self.caching, Yes) or any(isinstance(p, Causal) for p in parts)
        return n * (m - n) + n * (n + 1) / 2 if causal and m >= n else float(n * m)

    def skipped(self, module: str) -> None:
        """Count what was not run: the sites of a module, or of the whole model where it is ""."""
        for site, spent in self.spent.items():
            if site.module == module or not module:
                spent.dense += spent.last

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
        made = (p.run(call) for p in self.policies if type(p).run is not Policy.run)
        return next((x for x in made if x is not None), None)

    def _close(self, step: Step) -> None:
        if step.layer is None:
            return
        for one in self.policies:
            slots = one.slots(step)
            if slots is not None:
                step.memory.choose(slots)
        step.memory.settle()

    def stand_in(self, call: Call) -> Tensor | None:
        """Run a call that no other stage looks at: few policies ask for its log-sum-exp."""
        if self.paused:
            return attended(call)
        layer = None if isinstance(self.caching, No) else self._layer_of(call)
        if layer is not None:
            out = self._by_policy(call, layer)
            out = self._by_groups(call, layer) if out is None else out
            if out is not None:
                return out
        step = self._opened(call, layer)
        out = self._made(step.call)
        if out is None and any(type(p).joined is not Policy.joined for p in self.policies):
            out = self._joined(step, whole(step.call)).out
        out = attended(step.call) if out is None else out
        self._close(step)
        return out

    def _by_policy(self, call: Call, layer: Any) -> Tensor | None:
        """Let a policy attend by itself."""
        step = self._step(call, layer)
        for one in self.policies:
            found = one.attend(step)
            if found is not None:
                self._count(call, step.seen, float(step.pairs or 0))
                self._close(step)
                return found
        return None

    def _by_groups(self, call: Call, layer: Any) -> Tensor | None:
        """Attend by groups of heads that keep equally many keys, without filling them up."""
        memory, share = layer.memory, call.h // call.g
        if not getattr(memory, "ragged", False) or call.n > 1:
            return None
        if any(p.every_step or type(p).select is not Policy.select for p in self.policies):
            return None
        out = call.q.new_empty(call.b, call.h, call.n, call.e)
        for heads, read in memory.groups():
            queries = [h * share + i for h in heads for i in range(share)]
            own = call.replace(
                q=gather_heads(call.q, queries), rule=call.rule.take_heads(queries),
            )  # fmt: skip
            out[:, queries] = attended(placed(own, read.k, read.v, read.positions))
        self._count(call, memory.seen, float(memory.counts.float().mean()))
        memory.settle()
        return out

    def _layer_of(self, call: Call) -> Any:
        """The layer of the cache that the keys of a call went to; None without a cache."""
        tag = getattr(call.k, "_regard_layer", None)
        if tag is None and self.layers and any(x.memory.seen for x in self.layers):
            last = self.layers[self._number(call.site)]
            if getattr(last, "untold", False):
                fail(
                    CapabilityError, self.name, "keys that another stage has changed",
                    "keys as the model made them", "put the other stage after shrink, or leave it",
                )  # fmt: skip
        if tag is not None:
            tag.untold = False
        return tag if tag is None or tag.owner is self else None

    def _number(self, site: Any) -> int:
        return next((i for i, s in enumerate(self.sites) if s == site), 0)


def placed(call: Call, k: Tensor, v: Tensor, positions: Tensor | None) -> Call:
    """Give a call with the keys of a memory, in the simplest form that means the same."""
    if positions is None:
        return call.replace(k=k, v=v)
    # Padding is no key of the memory, so the rule need not look for it.
    rule = without_padding(call.rule)
    if call.n == 1 and rule.placeless and bool((positions >= 0).all()):
        return call.replace(k=k, v=v, rule=rule)
    positions = positions.long()
    if positions.dim() == 3 and k.shape[1] == 1:
        positions = positions[:, 0]
    return call.replace(k=k, v=v, rule=rule, k_positions=positions)


def without_padding(rule: Rule) -> Rule:
    """Give a rule less its padding.

    >>> from regard.core.support import Causal
    >>> without_padding(Rule(Causal() & Padding(torch.tensor([True, False]))))
    Rule(Causal())
    """
    support = rule.support
    if isinstance(support, Padding):
        return rule.replace(support=Everything())
    if not isinstance(support, Both) or not any(isinstance(p, Padding) for p in support.parts):
        return rule
    left: Support = Everything()
    for part in support.parts:
        left = left if isinstance(part, Padding) else left & part
    return rule.replace(support=left)


def _caches(model: Any, sites: Sites) -> Any:
    """Say whether the cache of a model can hold our memories, or why not."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "register_forward_pre_hook"):
        return No("which keeps no cache that is known")
    if getattr(config, "is_encoder_decoder", False):
        return No("which has an encoder: only decoders are served")
    try:
        named = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return No("whose forward cannot be read")
    if "past_key_values" not in named and "kwargs" not in named:
        return No("whose forward takes no cache")
    if "transformers" not in type(model).__module__ and not hasattr(config, "num_hidden_layers"):
        return No("which is no model of transformers")
    other = next((s for s in sites if s.kind != "self" or s.causal is False), None)
    if other is not None:
        return No(f"which attends otherwise than causally to itself at {other.module}")
    layers = [s.layer for s in sites]
    if layers != list(range(len(layers))):
        return No(f"whose attention layers are {layers}: layers of other kinds keep states")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "num_kv_shared_layers", 0):
        return No("whose layers share keys by design")
    return Yes()


__all__ = ["Shrinking", "Spent", "placed", "without_padding"]
