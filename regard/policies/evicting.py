"""Eviction policies: after a prompt (or each step) every head keeps its best keys.

A policy defines the score of a key (`score`), and perhaps how many each head may keep (`counts`).
Those that evict at every step are registered with their wrapper (`EachStep`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from regard.core.method import method
from regard.memories.base import KeyMemory
from regard.memories.head_pages import HeadPages
from regard.memories.ring import Ring
from regard.models.site import Site
from regard.policies.base import Step
from regard.policies.kinds import Evict, EvictByHistory, EvictUnevenly, Store
from regard.policies.registry import register
from regard.policies.scoring import by_key_head, rank_of, received, smooth
from regard.policies.timing import EachStep


class Rolling(EachStep):
    """Evict at every step; a budget in tokens or bytes is a ring of fixed size."""

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Build a ring, unless the budget is a share."""
        if self.budget.share is not None:
            return None
        tokens = int(self.budget.of_rows(torch.tensor([1 << 40]), self.token_bytes))
        sinks = min(self.sinks, tokens - 1)
        return Ring(tokens - sinks, sinks)

    def slots(self, step: Step, spare: float = 0.0) -> Tensor | None:
        """Return None for a ring, which evicts by itself."""
        return None if isinstance(step.memory, Ring) else super().slots(step, spare)


@register("streaming", "streaming_llm", "sinks_and_window", wrap=Rolling)
@dataclass
class Streaming(Evict):
    """Keep the first tokens (sinks) and the newest: score(j) = j.

    A budget in tokens or bytes is a ring of fixed size, so that a step costs the same at every
    length; a share grows with what was seen. Keys keep the positions they were made with.
    (StreamingLLM, Xiao et al. 2023)
    """

    sinks: int = 4
    recent: float = 1

    def score(self, step: Step) -> Tensor:
        """Score by position."""
        return step.positions.float()


@register("h2o", "heavy_hitters", wrap=EachStep)
@dataclass
class HeavyHitters(EvictByHistory):
    """Keep the newest tokens and those that have received the most weight so far, half and half.

    score(j) = sum of A[i, j] over all queries i up to now, mean over the query heads of a key head;
    at each step the lowest is evicted. (H2O, Zhang et al. 2023)
    """

    want: ClassVar[tuple[str, ...]] = ("weights",)
    recent: float = 0.5

    def note(self, step: Step) -> None:
        """Add the weight that every key receives."""
        got = by_key_head(received(step), step.call.g)
        step.memory.set_note("received", step.memory.note("received") + got)

    def score(self, step: Step) -> Tensor:
        """Score by the weight received."""
        found: Tensor = step.memory.note("received")
        return found


@register("snapkv", "snap_kv")
@dataclass
class SnapKV(Evict):
    """Keep what the last `window` tokens of the prompt attend to, smoothed over neighbors.

    score(j) = sum over the last w queries of A[i, j], smoothed over `kernel` positions, mean over
    the query heads of a key head; the window itself stays. What is generated later stays too.
    (SnapKV, Li et al. 2024)
    """

    window: int = 16
    kernel: int = 5

    def _newest(self, rows: Tensor) -> Tensor:
        """Count the window as newest."""
        return (rows - self.sinks).clamp(min=1, max=self.window)

    def score(self, step: Step) -> Tensor:
        """Score by the weights of the last queries."""
        w, m = min(self.window, step.n), step.call.m
        votes = received(step, w)[..., : m - w]
        own = by_key_head(smooth(votes, self.kernel) if m > w else votes, step.call.g)
        return torch.nn.functional.pad(own, (0, w))


@method("pyramid_kv", call='from regard.policies import policy; policy("pyramid_kv")')
@register("pyramid_kv", "pyramidkv")
@dataclass
class PyramidKV(EvictUnevenly, SnapKV):
    """As SnapKV, with budgets that fall in even steps from the first layer to the last.

    With an average of C keys a layer, w of them the window: the last layer keeps
    min = (C - w) / beta older keys, the first 2 (C - w) - min. Where min is less than the window,
    all layers keep C: at small budgets the last ones would keep nothing else.
    (PyramidKV, Cai et al. 2024)
    """

    beta: float = 20.0

    def counts(self, step: Step, rows: Tensor, score: Tensor) -> Tensor:
        """Return this layer's budget."""
        last = max(len(self.sites) - 1, 1)
        w = torch.full_like(rows, self.window).minimum(rows)
        average, room = (rows - w).double(), (step.real - w).double()
        least = average / self.beta
        most = (2 * average - least).minimum(room)
        least = (2 * average - most).minimum(room)
        share = self.depth[step.site.layer] / last if len(self.sites) > 1 else 0.5
        own = torch.where(least < w, average, most - (most - least) * share)
        own = torch.floor(own + 0.5).long() + w
        return own.clamp(min=1)[:, None].expand(-1, step.call.g)


@register("ada_kv", "adakv")
@dataclass
class AdaKV(EvictUnevenly, SnapKV, Store):
    """As SnapKV, with the budget of a layer divided among its heads by their scores.

    The best g * C keys of all heads of the layer stay, but each head keeps at least a share `floor`
    of C; heads become ragged, and cost what they keep. (Ada-KV, Feng et al. 2024)
    """

    floor: float = 0.2
    # Whether heads are stored in pages for one kernel (`HeadPages`); None means on GPUs only.
    pages: bool | None = None

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Build pages by head where one kernel launch for all heads is faster."""
        pages = next(self.model.parameters()).is_cuda if self.pages is None else self.pages
        return HeadPages() if pages and not self.budget.whole else None

    def counts(self, step: Step, rows: Tensor, score: Tensor) -> Tensor:
        """Count the keys of each head among the best of the layer."""
        b, g, m = score.shape
        at = step.positions
        score = torch.where(at >= 0, score, -torch.inf)
        least = torch.ceil(self.floor * rows).long().clamp(min=1)
        # The best of each head up to the floor are kept in any case.
        order = score.argsort(dim=-1, descending=True, stable=True)
        line = torch.arange(m, device=order.device).expand_as(order)
        place = torch.empty_like(order).scatter_(2, order, line)
        top = torch.finfo(score.dtype).max
        score = torch.where((place < least[:, None, None]) & (at >= 0), top, score)
        order = score.flatten(1).argsort(dim=-1, descending=True, stable=True)
        total = (rows * g).minimum((at >= 0).flatten(1).sum(1))
        chosen = torch.arange(g * m, device=order.device) < total[:, None]
        marked = torch.zeros_like(chosen).scatter_(1, order, chosen)
        return marked.view(b, g, m).sum(-1)


@register("tova", wrap=EachStep)
@dataclass
class Tova(Evict):
    """Keep what the newest token attends to, the same keys in all heads, at every step.

    score(j) = mean over all heads of A[last, j]. (TOVA, Oren et al. 2024)
    """

    want: ClassVar[tuple[str, ...]] = ("weights",)
    recent: float = 1

    def score(self, step: Step) -> Tensor:
        """Score by the weights of the newest query."""
        votes = received(step, 1).mean(1, keepdim=True)
        return votes.expand(-1, step.call.g, -1)


@register("knorm")
@dataclass
class KeyNorm(Evict):
    """Keep the keys of small norm, which receive the most weight: score(j) = -|k_j|.

    (Devoto et al. 2024)
    """

    def score(self, step: Step) -> Tensor:
        """Score by the norm."""
        return -step.call.k.float().norm(dim=-1)


@register("keydiff")
@dataclass
class KeyDiff(Evict):
    """Keep keys that differ from the mean direction of all: score(j) = -cos(k_j, mean of k / |k|).

    (KeyDiff, Park et al. 2025)
    """

    def score(self, step: Step) -> Tensor:
        """Score by the cosine with the anchor."""
        k, real = step.call.k.float(), (step.positions >= 0)[..., None]
        anchor = (normalize(k, dim=-1) * real).sum(2, keepdim=True) / real.sum(2, keepdim=True)
        return -torch.cosine_similarity(k, anchor, dim=-1)


@register("random")
@dataclass
class Random(Evict):
    """Keep random keys: the baseline of every other policy."""

    seed: int = 0

    def score(self, step: Step) -> Tensor:
        """Draw by position and head, so that runs are reproducible."""
        draw = torch.Generator().manual_seed(self.seed + (step.site.layer or 0))
        # By token first, so that a token's draw does not depend on how many come later.
        table = torch.rand(step.seen, step.call.g, generator=draw).T.to(device=step.call.k.device)
        at = rank_of(step.positions).clamp(min=0)
        return table.expand(step.call.b, -1, -1).gather(2, at)
