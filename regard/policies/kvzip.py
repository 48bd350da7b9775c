"""Evict what a model does not need to reconstruct its context."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import take_keys
from regard.core.rule import Rule
from regard.core.support import Causal, Padding
from regard.models.site import Site, Sites
from regard.models.weights import closed_weights
from regard.policies.base import Step
from regard.policies.kinds import Evict, ModulePatch
from regard.policies.registry import register
from regard.policies.scoring import FEW, rank_of
from regard.run.executor import Answer, No, Yes


@register("kvzip", "kv_zip")
@dataclass
class KVzip(Evict, ModulePatch):
    """Keep what the model attends to when it repeats its context, for any later query.

    After a prompt the model reads it once more, `chunk` tokens at a time, behind `ask` (the ids of
    "Repeat the previous context exactly.", say) and the last `overlap` tokens of the chunk before:

        score(j) = max over these queries and the query heads of a key head of A[i, j]

    with A over the sinks, the chunk, and what is being repeated. All heads of all layers share one
    budget, so that they become ragged. Costs one more forward of the prompt, and a second copy of
    the cache while it scores. Tokens generated later stay; a text of several chunks is scored
    independently of its batch only where it is not padded on the left. (KVzip, Kim et al. 2025)
    """

    patches: ClassVar[tuple[str, ...]] = ("model",)
    even: ClassVar[bool] = False

    sinks: int = 4
    chunk: int = 2048
    overlap: int = 8
    ask: tuple[int, ...] = ()

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether the model's forward takes ids and positions."""
        takes = inspect.signature(model.forward).parameters
        lacking = {"input_ids", "position_ids", "attention_mask"} - set(takes)
        if lacking:
            return No(f"whose forward does not take {', '.join(sorted(lacking))}")
        self.takes = list(takes)
        return Yes()

    def begin(self, model: Any, sites: Sites, budget: Any) -> None:
        """Start without scores."""
        super().begin(model, sites, budget)
        # Slots of each key head, by layer, that are being repeated [g, c], and their scores.
        self.asked: dict[int | None, Tensor] = {}
        self.found: dict[int | None, Tensor] = {}

    def score(self, step: Step) -> Tensor:
        """Return the score of every slot, [b, g, m]."""
        return worth(step.memory)

    def slots(self, step: Step, spare: float = 0.0) -> Tensor | None:
        """Record what a repetition attends to; `choose` evicts in all layers together, later."""
        asked = self.asked.get(step.site.layer)
        if asked is not None:
            self.found[step.site.layer] = self.largest_weights(step, asked)
            step.dense = 0.0  # the unchanged model does not repeat
        return None

    def largest_weights(self, step: Step, asked: Tensor) -> Tensor:
        """Return the largest weight of each key in `asked`, [b, g, c]."""
        call, n = step.call, step.n
        first = torch.arange(min(self.sinks, int(asked.min())), device=asked.device)
        newest = slots_of(step.memory)[:, None] + torch.arange(-n, 0, device=asked.device)
        at = torch.cat((first.expand(len(asked), -1), asked, newest), 1).expand(call.b, -1, -1)
        k, v = take_keys(call.k, at), take_keys(call.v, at)
        real = step.positions.gather(2, at)[:, 0] >= 0
        rule = Rule(Causal() & Padding(real), call.rule.score, call.rule.weigh, k.shape[2] - n)
        most = k.new_zeros(call.b, call.h, k.shape[2], dtype=torch.float32)
        rows = max(1, FEW // most.numel())
        for begin in range(0, n, rows):
            own = Call.of(call.q[:, :, begin : begin + rows], k, v, rule.shift(begin))
            weights = closed_weights(own, "kvzip").float()
            asking = real[:, k.shape[2] - n :][:, None, begin : begin + rows, None]
            most = torch.maximum(most, (weights * asking).amax(2))
        some = slice(len(first), len(first) + asked.shape[1])
        return most[..., some].unflatten(1, (call.g, -1)).amax(2)

    def patch(
        self, site: Site | None, run: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run the prompt, repeat it, and evict."""
        given = {**dict(zip(self.takes, args, strict=False)), **kwargs}
        out = run(*args, **kwargs)
        ids: Any = given.get("input_ids")
        cache = given.get("past_key_values") or getattr(out, "past_key_values", None)
        wanted = cache is not None and not self.budget.whole and not self.asked
        if wanted and ids is not None and ids.shape[1] > 1:
            with torch.no_grad():
                self.repeat(run, cache, ids, given.get("attention_mask"))
                self.choose(cache)
        return out

    def repeat(self, run: Callable[..., Any], cache: Any, ids: Tensor, mask: Any) -> None:
        """Repeat `ids` [b, n], the newest tokens, and note the scores of their keys."""
        b, n = ids.shape
        seen = int(cache.get_seq_length())
        real = torch.ones(b, seen, device=ids.device) if mask is None else mask[:, -seen:]
        ask = torch.tensor(self.ask, dtype=ids.dtype, device=ids.device).expand(b, -1)
        for start in range(0, n, self.chunk):
            stop, before = min(start + self.chunk, n), max(0, start - self.overlap)
            repeated = torch.cat((ask, ids[:, before:stop]), 1)
            held = real[:, seen - n + before : seen - n + stop].bool()
            valid = torch.cat((real.bool(), torch.ones_like(ask, dtype=torch.bool), held), 1)
            places = (valid.cumsum(1) - 1).clamp(min=0)[:, seen:]
            scratch = copy.deepcopy(cache)
            for layer in scratch.layers:
                layer.valid = None if bool(valid[:, seen:].all()) else valid[:, seen:]
                layer.places = places
            some = torch.arange(start - n, stop - n, device=ids.device)
            asked = {x.number: slots_of(x.memory)[:, None] + some for x in cache.layers}
            self.asked = asked
            try:
                run(
                    input_ids=repeated, past_key_values=scratch, attention_mask=valid.long(),
                    position_ids=places, use_cache=True,
                )  # fmt: skip
            finally:
                self.asked = {}
            for layer in cache.layers:
                at = asked[layer.number].expand(b, -1, -1)
                scored = 1 + self.found[layer.number]
                noted = layer.memory.note("kvzip").scatter(2, at, scored)
                layer.memory.set_note("kvzip", noted)
        self.found = {}

    def choose(self, cache: Any) -> None:
        """Keep the best keys of all heads of all layers, within the budget."""
        layers = cache.layers
        at = [layer.memory.positions for layer in layers]
        heads = sum(x.shape[1] for x in at)
        scores = []
        for layer, where in zip(layers, at, strict=True):
            score = torch.where(rank_of(where) < self.sinks, 3.0, worth(layer.memory))
            scores.append(torch.where(where >= 0, score, -torch.inf).flatten(1))
        real = layers[0].real
        rows = self.budget.of_rows(real, self.token_bytes)
        if self.budget.share is not None and self.sinks:  # sinks are always kept
            rows = rows.clamp(min=self.sinks + 1).minimum(real)
        room = (rows * heads)[:, None]
        flat = torch.cat(scores, 1)
        order = flat.argsort(dim=-1, descending=True, stable=True)
        kept = torch.arange(flat.shape[1], device=flat.device) < room
        marked = torch.zeros_like(kept).scatter_(1, order, kept) & (flat > -torch.inf)
        if bool((marked.sum(1) == (flat > -torch.inf).sum(1)).all()):
            return
        for layer, where, own in zip(
            layers, at, marked.split([x.shape[1] for x in scores], 1), strict=True
        ):
            line = torch.arange(where.shape[2], device=where.device)
            layer.memory.choose(torch.where(own.view_as(where), line, -1))
            layer.memory.settle()


def worth(memory: Any) -> Tensor:
    """Return the score of every slot of a memory, [b, g, m]: the highest where it has none."""
    noted: Tensor = memory.note("kvzip")
    return torch.where(noted > 0, noted - 1, 2.0)


def slots_of(memory: Any) -> Tensor:
    """Return the number of slots of each key head, [g]; the newest tokens are in the last ones."""
    counts = {head: own.width for heads, own in memory.groups() for head in heads}
    return torch.tensor(
        [counts[head] for head in sorted(counts)], device=memory.positions.device
    )  # fmt: skip
