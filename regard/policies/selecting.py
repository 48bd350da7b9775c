"""Policies that keep every key and read few of them at each decoding step.

A policy keeps an index beside the memory (`index`), and scores the keys with it at each step
(`worth`). Each step chooses anew: nothing is lost.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import take_keys
from regard.core.keys import Dense
from regard.core.method import method
from regard.core.support import Everything
from regard.core.top import top_slots
from regard.memories.stores import Plain, TokenStore
from regard.memories.summaries import Bounds
from regard.policies.base import Step
from regard.policies.kinds import Select
from regard.policies.registry import register
from regard.policies.scoring import best
from regard.run.counting import multiply


@dataclass
class Selecting(Select):
    """Base class of policies that read few keys when decoding: override `index` and `worth`."""

    def index(self) -> TokenStore | None:
        """Build the index that is kept beside the memory."""
        return None

    @abstractmethod
    def worth(self, step: Step, index: Any) -> Tensor | None:
        """Return the score of each key for this query, [b, g, m]; None to read all."""

    def select(self, step: Step) -> Call:
        """Read the best-scored keys."""
        call, layer = step.call, step.layer
        if layer is None or self.budget.whole:
            return call
        index, single, keys = self._index(step), call.q.shape[2] == 1, call.keys
        # A window already reads little.
        windowed = single and type(call.rule.support) is not Everything
        in_place = (keys.at if type(keys) is Dense else step.at) is None
        if single and in_place and not windowed and self.alike:
            count = self.budget.of_row(step.seen, self.token_bytes)
            if count < keys.shape[2]:  # every head holds every key: any order will do
                step.slots = self.quickly(step, index, count)
                return call
        rows = self.rows(step)
        if not single or bool((rows >= call.m).all()):
            self.passed(step)
            return call
        if windowed:
            return call
        slots = self.choose(step, index, rows)
        if slots is None:
            return call
        return taken(call, slots, step.positions)

    @property
    def alike(self) -> bool:
        """Whether every key head reads equally many keys."""
        return True

    def quickly(self, step: Step, index: Any, count: int) -> Tensor | None:
        """Choose `count` keys for each key head, [b, g, count]; None to read all."""
        worth = self.worth(step, index)
        return None if worth is None else top_slots(worth, count)

    def choose(self, step: Step, index: Any, rows: Tensor) -> Tensor | None:
        """Choose `rows` [b] keys for each key head where some slots are empty: [b, g, c]."""
        worth = self.worth(step, index)
        if worth is None:
            return None
        return best(worth, rows[:, None].expand(-1, step.call.g), step.positions)

    def passed(self, step: Step) -> None:
        """Record anything needed from a step that read every key."""

    def _index(self, step: Step) -> Any:
        """Update the index to the keys that are kept."""
        layer = step.layer
        assert layer is not None
        index = layer.extra.get(self.name)
        keys, dropped = step.call.keys, getattr(layer.memory, "_dropped_at", 0)
        have = 0 if index is None else len(index)
        gone = have > keys.m - step.call.q.shape[2] or layer.extra_at.get(self.name, 0) != dropped
        if index is None or gone:
            # Keys were dropped since: rebuild the index from those that remain.
            index, have = self.index(), 0
            if index is None:
                return None
            layer.extra[self.name] = index
        layer.extra_at[self.name] = dropped
        if keys.m - have >= index.takes:
            index.append(self.seen_by_index(step, keys.since(have)))
        return index

    def seen_by_index(self, step: Step, k: Tensor) -> Tensor:
        """Return what the index stores of new keys."""
        return k


def taken(call: Call, slots: Tensor, at: Tensor) -> Call:
    """Return a decoding call on the keys in slots [b, g, c]; `at` [b, g, m] are the positions."""
    index = slots.clamp(min=0)
    k, v = take_keys(call.k, index), take_keys(call.v, index)
    if bool((slots >= 0).all()):
        return call.replace(k=k, v=v, k_positions=None)
    return call.replace(k=k, v=v, k_positions=torch.where(slots >= 0, at.gather(2, index), -1))


def page_scores(q: Tensor, bounds: Tensor) -> Tensor:
    """Bound q . k over each page by the sum over channels of max(q low, q high), [b, h, n, pages].

    q [b, h, n, d]; bounds [b, g, pages, 2 d] hold the minimum of each channel, then the maximum.
    With q split by sign this is a single product.
    """
    b, h, n, _ = q.shape
    grouped = q.reshape(b, bounds.shape[1], h // bounds.shape[1] * n, q.shape[3])
    split = torch.cat((grouped.clamp(max=0), grouped.clamp(min=0)), -1)
    # In this order the rows of bounds are read contiguously.
    found = multiply(bounds, split.transpose(2, 3))
    return found.transpose(2, 3).reshape(b, h, n, -1)


def page_worth(q: Tensor, index: Bounds, page: int, m: int, g: int) -> Tensor:
    """Score each page of `page` tokens among m keys for queries q [b, h, 1, d]: [b, g, pages].

    The score is the largest bound of its tokens, over the query heads of a key head; the first page
    and the newest, which may be partly filled, score above all others.
    """
    each = max(1, page // index.page)
    score = q.new_full((q.shape[0], g, -(-m // page) * each), -torch.inf)
    if index.pages:
        found = page_scores(q, index.read())
        b, h, n, pages = found.shape
        own = found.view(b, g, h // g * n, pages).amax(2)
        score[..., : own.shape[-1]] = own
    if each > 1:
        score = score.unflatten(-1, (-1, each)).amax(-1)
    score[..., 0] = score[..., -1] = torch.finfo(score.dtype).max
    return score


def whole_pages(score: Tensor, rows: Tensor, page: int, positions: Tensor) -> Tensor:
    """Return slots [b, g, c] of the best pages by score [b, g, pages], to hold `rows` [b] keys.

    The first page that holds a key (`positions` [b, g, m] are -1 at padding) and the newest are
    always included, whatever their scores.

    >>> score = torch.tensor([[[0.0, 1.0, 2.0, 1.0]]])
    >>> at = torch.tensor([[[-1, -1, 2, 3, 4, 5, 6]]])
    >>> whole_pages(score, torch.tensor([4]), 2, at).tolist()
    [[[2, 3, 6, -1]]]
    """
    b, g, m = positions.shape
    pages = score.shape[-1]
    real = torch.nn.functional.pad(positions, (0, pages * page - m), value=-1) >= 0
    held = real.unflatten(-1, (pages, page)).any(-1)
    number = torch.arange(pages, device=score.device)
    first = held & (held.cumsum(-1) == 1)
    score = torch.where(first | (number == pages - 1), torch.finfo(score.dtype).max, score)
    count = (-(-rows // page)).clamp(min=2)[:, None].expand(b, g)
    chosen = best(score, count, torch.where(held, number, -1))
    slots = chosen[..., None] * page + torch.arange(page, device=score.device)
    slots = torch.where(chosen[..., None] < 0, -1, slots).flatten(2)
    slots = torch.where(slots < m, slots, -1)
    return torch.where(positions.gather(2, slots.clamp(min=0)) >= 0, slots, -1)


@register("quest", "pages")
@dataclass
class Quest(Selecting):
    """Read the pages whose keys may match best, by the minimum and maximum of each channel.

    s(page) = sum_c max(q_c min_c, q_c max_c) bounds q . k from above; the maximum over the query
    heads of a key head is used; the first and the newest page are always read. (Quest, Tang et al.
    2024)
    """

    columns: ClassVar[str] = "pages"
    page: int = 16
    # Tokens that share bounds: fewer than a page, to separate a needle from its neighbors.
    logical: int = 16

    def index(self) -> TokenStore:
        """Keep the bounds of each page."""
        return Bounds(min(self.logical, self.page))

    def worth(self, step: Step, index: Bounds) -> Tensor:
        """Score each key by its page."""
        return self._pages(step, index).repeat_interleave(self.page, -1)[..., : step.call.m]

    def _pages(self, step: Step, index: Bounds) -> Tensor:
        call = step.call
        return page_worth(call.q, index, self.page, call.m, call.g)

    def choose(self, step: Step, index: Bounds, rows: Tensor) -> Tensor:
        """Choose whole pages, for rows that start with padding."""
        return whole_pages(self._pages(step, index), rows, self.page, step.positions)

    def quickly(self, step: Step, index: Bounds, count: int) -> Tensor:
        """Choose whole pages; slots past the end of the newest page come last and are cut off."""
        _, g, m, _, _ = step.call.keys.shape
        score = page_worth(step.call.q, index, self.page, m, g)
        pages = min(max(2, -(-count // self.page)), score.shape[-1])
        best_pages = score.topk(pages, dim=-1, sorted=False).indices.sort(-1).values
        slots = best_pages[..., None] * self.page + torch.arange(self.page, device=score.device)
        slots = slots.flatten(2)
        return slots[..., : slots.shape[-1] - (-m % self.page)]


@register("recycled", "recycled_attention")
@method("recycled_attention", call='from regard.policies import policy; policy("recycled")')
@dataclass
class Recycled(Selecting):
    """Read every key at each `every`-th step, and in between the keys that step ranked best.

    A full step ranks keys by the weight its query gave them (the mean over the query heads of a key
    head); the steps in between read the best of these, and all keys that came since.
    (Recycled Attention, Xu et al. 2024)
    """

    every: int = 8

    def worth(self, step: Step, index: None) -> Tensor | None:
        """Return the weights of the last full step; where it is due, make this step a full one."""
        layer, call = step.layer, step.call
        assert layer is not None
        held = layer.extra.get(f"{self.name} weights")
        since = call.m - (0 if held is None else len(held))
        if held is None or since > self.every:
            self.passed(step)
            return None
        weight = held.read()[..., 0]
        new = weight.new_full((*weight.shape[:2], since), torch.finfo(weight.dtype).max)
        return torch.cat((weight, new), -1)

    def passed(self, step: Step) -> None:
        """Keep the weights of the newest query."""
        call, layer = step.call, step.layer
        assert layer is not None
        # In float32: low-precision weights tie, and the order of ties is arbitrary.
        q = call.q[:, :, -1].unflatten(1, (call.g, -1)).float()
        score = multiply(q, call.k.float().transpose(2, 3)) / math.sqrt(call.d)
        weight = score.masked_fill(step.positions[:, :, None] < 0, -torch.inf).softmax(-1).mean(2)
        held = Plain()
        held.append(weight[..., None])
        layer.extra[f"{self.name} weights"] = held
