"""Longer texts than a model was trained on, by reading a few chunks at trained positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, RegardError, fail
from regard.core.heads import take_keys
from regard.core.method import method
from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.memories.bare import Bare
from regard.memories.base import KeyMemory
from regard.memories.summaries import LandmarkPages
from regard.models.rotary import Turn, turns_of
from regard.models.site import Site, Sites
from regard.policies.base import Step
from regard.policies.kinds import Select, StoreAndAttend
from regard.policies.registry import register
from regard.run.api import attend
from regard.run.counting import multiply
from regard.run.executor import Answer, No, Yes
from regard.run.runner import run

# Most numbers in the keys that are gathered at once.
ROOM = 1 << 24


@register("longheads")
@method("longheads", call='from regard.policies import policy; policy("longheads", keep=4096)')
@dataclass
class LongHeads(StoreAndAttend, Select):
    """Let each head read the first chunk, the newest two and its own best, renumbered.

    The text is split into chunks of `chunk` tokens; `keep` is how many tokens a query reads (4,096,
    say: at most the trained length), K chunks in all, at least three. The landmark of a chunk is
    `c = softmax(m k^T / sqrt(d)) k`, with m the mean output of attention inside the chunk, and k
    its keys rotated to positions 0 to chunk - 1. Query t scores `q_t . c`, q before its rotation,
    and reads the chunks in order as if they were at 0, 1, 2, ..., itself at
    (K - 1) chunk + t mod chunk: no position is beyond the trained ones. A text that fits is read as
    usual. Keys are kept before their rotation. (LongHeads, Lu et al. 2024)

    Texts longer than `keep` must not be padded: the chunks of a batch are aligned.
    """

    what: ClassVar[str] = "decoding"
    chunk: int = 256

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether keys can be rotated back."""
        try:
            self.turns = turns_of(model)
        except RegardError as why:
            return No(f"whose keys cannot be renumbered ({why})")
        return Yes()

    def _turn(self, site: Site) -> Turn:
        return self.turns[self.depth[site.layer]]

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Build a memory of keys without positions."""
        return None if self.budget.whole else Bare(self._turn(site))

    def select(self, step: Step) -> Call:
        """Return the call of a text that fits; refuse a longer one where another stage needs it."""
        if step.layer is not None and not self.budget.whole and self._chunks(step) is not None:
            fail(
                CapabilityError, self.name, "another stage", "no other stage for long texts",
                "see or steer the model without it, or with a text that fits",
            )  # fmt: skip
        return step.call

    def _chunks(self, step: Step) -> int | None:
        """Return the number of chunks that a query reads; None where it reads all."""
        plain = isinstance(step.call.rule.support, Everything | Causal)
        if not plain and step.memory.in_order:  # a window is small already
            return None
        rows = int(self.rows(step).max())
        count = max(3, rows // self.chunk)
        if rows >= step.seen:
            return None
        return count if step.seen > count * self.chunk else None

    def attend(self, step: Step) -> Tensor | None:
        """Read chunks, for the queries beyond the budget."""
        layer = step.layer
        if layer is None or self.budget.whole:
            return None
        turn, call, n = self._turn(step.site), step.call, step.n
        marks = layer.extra.setdefault(self.name, self._marks(turn, call))
        at = torch.arange(step.seen - n, step.seen, device=call.q.device)
        if step.memory.in_order:
            q = turn.back(call.q, at)
            bare = step.memory.bare()
            marks.append(torch.cat((q, bare.k[:, :, -n:], bare.v[:, :, -n:]), 1))
        count = self._chunks(step)
        if count is None:
            return None
        if not step.memory.in_order:
            fail(
                CapabilityError, self.name, "padding, or custom positions",
                "rows of equal length, from position 0", "run texts one by one",
            )  # fmt: skip
        reach, outs = count * self.chunk, []
        early = max(0, min(n, reach - int(at[0])))
        if early:
            k = turn.turn(bare.k[:, :, :reach], torch.arange(reach, device=at.device))
            rule = call.rule.replace(support=Causal(), offset=int(at[0]))
            first = call.replace(q=call.q[:, :, :early], k=k, v=bare.v[:, :, :reach], rule=rule)
            outs.append(run(first).out)
        late = at[early:]
        rows = max(1, ROOM // (call.b * call.h * reach * call.d))
        for some in late.split(rows):
            own = q[:, :, some - at[0]]
            slots = self.chosen(own, marks.read(), some, count)
            outs.append(self._read(call, own, bare.k, bare.v, slots, some, count))
        return torch.cat(outs, 2)

    def chosen(self, q: Tensor, marks: Tensor, at: Tensor, count: int) -> Tensor:
        """Return the chunks [b, h, p, count] that unrotated queries q [b, h, p, d] at [p] read."""
        scores = multiply(q, marks.transpose(2, 3))  # [b, h, p, chunks]
        newest = (at // self.chunk)[:, None]
        number = torch.arange(marks.shape[2], device=at.device)
        scores = scores.masked_fill(number >= newest - 1, -torch.inf)
        scores[..., 0] = torch.inf
        best = scores.topk(count - 2, dim=-1).indices.sort(-1).values
        ends = torch.cat((newest - 1, newest), 1).expand(*best.shape[:3], 2)
        return torch.cat((best, ends), -1)

    def _read(
        self, call: Call, q: Tensor, k: Tensor, v: Tensor, chunks: Tensor, at: Tensor, count: int
    ) -> Tensor:
        """Attend from each query to its own chunks, as if they were the whole text."""
        turn, w, (b, h, p, _) = self._turn(call.site), self.chunk, q.shape
        line = torch.arange(count * w, device=at.device)
        slots = (chunks[..., None] * w + line[:w]).flatten(3)  # [b, h, p, count w]
        slots = slots.clamp(max=k.shape[2] - 1).unflatten(1, (call.g, -1)).flatten(2)
        last = (count - 1) * w + at % w

        def gathered(x: Tensor) -> Tensor:  # a row for each query, own keys for each head
            found = take_keys(x, slots).view(b, h, p, count * w, x.shape[3])
            return found.transpose(1, 2).flatten(0, 1)

        seen = torch.where(line <= last[:, None], line, -1).repeat(b, 1)
        rule = call.rule.replace(support=Everything(), offset=0)
        own = call.replace(
            q=turn.turn(q, last).transpose(1, 2).reshape(b * p, h, 1, -1),
            k=turn.turn(gathered(k), line), v=gathered(v), rule=rule, k_positions=seen,
        )  # fmt: skip
        return run(own).out.view(b, p, h, -1).transpose(1, 2)

    def _marks(self, turn: Turn, call: Call) -> LandmarkPages:
        rule = Rule(score=call.rule.score)
        return LandmarkPages(
            self.chunk, partial(_landmark, turn=turn, rule=rule, h=call.h, g=call.g)
        )


def _landmark(pages: Tensor, turn: Turn, rule: Rule, h: int, g: int) -> Tensor:
    """Return landmarks [b, h, t, d] of pages [b, h + 2 g, t, w, d] of unrotated q, k and v."""
    b, _, t, w, _ = pages.shape
    rows = pages.transpose(1, 2).flatten(0, 1)  # [b t, heads, w, d]
    line = torch.arange(w, device=pages.device)
    q, k, v = rows.split((h, g, g), 1)
    q, k = turn.turn(q, line), turn.turn(k, line)
    mean = attend(q, k, v, rule).mean(2, keepdim=True)
    return attend(mean, k, k, rule).view(b, t, h, -1).transpose(1, 2)
