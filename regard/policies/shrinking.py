"""The stage that runs policies: attention reads from memories, and policies choose what stays."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail
from regard.core.partial import Partial
from regard.core.result import Result
from regard.models.pipelines import branches_by_text
from regard.models.site import Sites
from regard.models.stage import Stage
from regard.policies.base import Policy, Step
from regard.policies.budget import Budget
from regard.policies.caches import Caches, need_one
from regard.policies.caching import can_cache
from regard.policies.kinds import (
    Evict,
    EvictAtSteps,
    ModulePatch,
    Prefill,
    Select,
    SelectAndJoin,
    SelectAndRun,
    Store,
    StoreAndAttend,
)  # fmt: skip
from regard.policies.module_patch import patch_modules
from regard.policies.spent_flops import SpentFlops
from regard.policies.without_padding import without_padding
from regard.run.counting import COUNT
from regard.run.executor import Answer, No
from regard.run.runner import otherwise


class Shrinking(Stage):
    """Run policies on a model with a cache."""

    def __init__(self, policies: Sequence[Policy], keep: Any = 0.25) -> None:
        super().__init__()
        self.policies, self.budget = list(policies), Budget.of(keep)
        self.active = False
        # Whether forwards run as in the full model, for comparison.
        self.paused = False
        self._steps = threading.local()
        # The pipeline that the model is part of, if one was given.
        self.pipeline: Any = None
        self._undo = ExitStack()

    @property
    def layers(self) -> list[Any]:
        """Return the layers of the cache that was used last."""
        return self.caches.layers

    @property
    def name(self) -> str:
        """Return the name used in errors."""
        return f"shrink({', '.join(p.name for p in self.policies)})"

    def begin(self, model: Any, sites: Sites) -> None:
        """Check that every policy supports the model, then hook its forwards."""
        self.caching = self._can_cache(model, sites)
        for one in self.policies:
            lacking = one.needs_cache and isinstance(self.caching, No)
            answer = self.caching if lacking else one.can(model, sites)
            if isinstance(answer, No):
                fail(
                    CapabilityError, f"policy {one.name!r}",
                    f"{type(model).__name__}, {answer.reason}", "a model that it supports",
                    "use another policy: see regard.policies.known()",
                )  # fmt: skip
        self._need_company()
        self.model, self.sites = model, sites
        self.costs = SpentFlops(sites, causal=not isinstance(self.caching, No))
        # Policies by kind; those that act at a prefill have no part in single steps.
        own = self.policies
        self._choosing = [p for p in own if isinstance(p, Select | Prefill)]
        self._at_steps = [p for p in own if isinstance(p, Select)]
        self._joining = [p for p in own if isinstance(p, SelectAndJoin)]
        self._attending = [p for p in own if isinstance(p, StoreAndAttend)]
        self._making = [p for p in own if isinstance(p, SelectAndRun)]
        self.runs = bool(self._attending or self._making)
        self._keeping = [p for p in own if isinstance(p, Evict)]
        self._keeping_on = next((p for p in own if isinstance(p, EvictAtSteps)), None)
        for one in self.policies:
            one.begin(model, sites, self.budget)
        self.caches = self._new_caches(model)
        self._undo.callback(patch_modules(model, sites, self))
        if self.pipeline is not None:
            self._undo.enter_context(branches_by_text(self.pipeline, model))
        self.active = True

    def _can_cache(self, model: Any, sites: Sites) -> Answer:
        """Check that the state the model keeps can be read and chosen from; say why not."""
        return can_cache(model, sites)

    def _new_caches(self, model: Any) -> Any:
        """Return a function that finds the cache layer that a call belongs to."""
        return Caches(model, self)

    def _need_company(self) -> None:
        """Reject policies that conflict."""
        held = self.policies
        patched = [p for p in held if isinstance(p, ModulePatch) and "self" in p.patches]
        for what, own in (
            ("keys", [p for p in held if isinstance(p, Evict)]),
            ("stores", [p for p in held if isinstance(p, Store) and p.what == "stores"]),
            ("outputs", [p for p in held if isinstance(p, SelectAndRun)]),
            ("attention", [p for p in held if patched and isinstance(p, Evict | Store)]),
        ):
            if len(own) > 1:
                need_one([p.name for p in own], what)

    def end(self) -> None:
        """Release the model; caches made here raise when used again."""
        self.active = False
        self._undo.close()
        for one in self.policies:
            one.end()

    def arrive(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Install our layers in the cache of a forward that starts."""
        if isinstance(self.caching, No) or not self.active:
            return None
        self._steps.held = []
        return None if self.paused else self.caches.arrive(model, args, kwargs)

    def before(self, call: Call) -> Call:
        """Replace the new keys by those the memory holds, and let policies choose among them."""
        if self.paused:
            return call
        layer = None if isinstance(self.caching, No) else self.caches.layer_of(call)
        held = getattr(self._steps, "held", None)
        if held is None:
            held = self._steps.held = []
        if self._attending and layer is not None:
            step = Step(call, layer.memory.seen, None, layer, unread=True)
        else:
            step = self._opened(call, layer)
        held.append(step)
        return step.call

    def _opened(self, call: Call, layer: Any) -> Step:
        """Read the keys from the memory, and let policies choose."""
        before = COUNT.flops
        if layer is not None:
            rule = call.rule
            rule = rule if rule.plain else without_padding(rule)
            call = Call(
                call.q, layer.memory.keys(), rule, call.q_positions, call.dropout, call.site,
                call.forward,
            )  # fmt: skip
            step = Step(call, layer.memory.seen, None, layer)
        else:
            real = torch.full((call.b,), call.m, device=call.q.device)
            step = Step(call, call.m, real)
        step.whole = call
        single = call.q.shape[2] == 1 and layer is not None and step.seen > 1
        for one in self._at_steps if single else self._choosing:
            step.call = one.select(step)
        if step.slots is not None:
            step.call = step.call.replace(keys=step.call.keys.take(step.slots, full=True))
        # The cost of choosing counts as well.
        step.spent = COUNT.flops - before
        return step

    def wants(self, call: Call) -> Sequence[str]:
        """Request weights where a policy uses them after this step; of parts, to merge."""
        if self.paused:
            return ()
        step = self._steps.held[-1]
        one = self._keeping_on
        single = call.q.shape[2] == 1
        if step.layer is not None:
            later = single and step.seen > 1  # then only policies that evict at each step
            if not later or (one is not None and one.due(step.layer)):
                step.due = self._keeping
        asked = [x for p in step.due for x in p.want] if single and step.due else []
        if self._joining:
            asked.append("lse")
        return asked

    def around(self, call: Call, run: Any) -> Result:
        """Let a policy compute the attention itself, or run the call in its own way."""
        found: Result
        if self.paused:
            found = run(call)
            return found
        step = self._steps.held[-1]
        if step.unread:
            # A call that another stage changed since is not the one the policy read: reject it.
            alone, before = run.plain and call is step.call, COUNT.flops
            result = self._by_policy(step, call) if alone else None
            if result is not None:
                return result
            tried = COUNT.flops - before
            opened = self._opened(call, step.layer)
            opened.due = step.due
            # What a policy computed before passing the call on counts as well.
            opened.spent += step.spent + tried
            self._steps.held[-1] = step = opened
            call = step.call
        for one in self._making:
            made = otherwise(call, one.name, partial(one.run, call))
            if made is not None:
                return made if run.plain else run(call)._replace(out=made.out, cost=made.cost)
        found = run(call)
        return found

    def _by_policy(self, step: Step, call: Call) -> Result | None:
        """Let a policy compute the attention itself."""
        for one in self._attending:
            found = otherwise(call, one.name, partial(one.attend, step))
            if found is not None:
                return found
        return None

    def after(self, call: Call, result: Result) -> Result:
        """Let policies edit the result and choose what stays, then compress the memory."""
        if self.paused:
            return result
        step = self._steps.held.pop()
        before = COUNT.flops
        if self._joining:
            part = Partial(result.out, result.lse)
            for one in self._joining:
                part = one.join(step, part)
            result = result._replace(out=part.out, lse=part.lse)
        if step.layer is not None:
            step.weights = result.weights if call.q.shape[2] == 1 else None
            step.call = step.whole or step.call
            for one in step.due:
                slots = one.slots(step)
                if slots is not None:
                    step.memory.choose(slots)
            step.layer.memory.settle()
        spent = step.spent + result.cost.flops + COUNT.flops - before
        e = result.out.shape[3]
        self.costs.add(step.whole or call, e, step.seen, spent, step.dense)
        return result
