"""Longer texts than a model was trained on, by reading a few chunks at places that it knows."""

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

# Numbers that the keys gathered for some queries may take at once.
ROOM = 1 << 24


@register("longheads")
@method("longheads", call='from regard.policies import policy; policy("longheads", keep=4096)')
@dataclass
class LongHeads(StoreAndAttend, Select):
    """Let each head read the first chunk, the newest two and its own best, numbered anew.

    The text is cut into chunks of `chunk` tokens; `keep` says how many tokens a query reads (4,096,
    say: no more than the model was trained on), K chunks in all, at least three. A chunk is found
    by its landmark `c = softmax(m k^T / sqrt(d)) k`, with m the mean of what attention inside the
    chunk gives, and k its keys turned for places 0 to chunk - 1. Query t scores `q_t . c`, q before
    its rotation, and reads the chunks in their order as if they stood at 0, 1, 2, ..., itself at
    (K - 1) chunk + t mod chunk: no place is one that the model never saw. A text that fits is read
    as ever. Keys are kept before their rotation. (LongHeads, Lu et al. 2024)

    Texts longer than what is read must not be padded: chunks of a batch begin together.
    """

    what: ClassVar[str] = "decoding"
    chunk: int = 256

    def can(self, model: Any, sites: Sites) -> Answer:
        """Return whether keys can be turned back."""
        try:
            self.turns = turns_of(model)
        except RegardError as why:
            return No(f"whose keys cannot be numbered anew ({why})")
        return Yes()

    def _turn(self, site: Site) -> Turn:
        return self.turns[self.depth[site.layer]]

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Keep keys without their positions."""
        return None if self.budget.whole else Bare(self._turn(site))

    def select(self, step: Step) -> Call:
        """Leave a text that fits as it is; a longer one was read already, if nobody looks on."""
        if step.layer is not None and not self.budget.whole and self._chunks(step) is not None:
            fail(
                CapabilityError, self.name, "a stage beside it", "to attend alone, in its own way",
                "see or steer the model without it, or with a text that fits",
            )  # fmt: skip
        return step.call

    def _chunks(self, step: Step) -> int | None:
        """Chunks that a query reads; None where it reads all."""
        plain = isinstance(step.call.rule.support, Everything | Causal)
        if not plain and step.memory.in_order:  # a window reads little as it is
            return None
        rows = int(self.rows(step).max())
        count = max(3, rows // self.chunk)
        if rows >= step.seen:
            return None
        return count if step.seen > count * self.chunk else None

    def attend(self, step: Step) -> Tensor | None:
        """Read chunks, for the queries that are past what can be read whole."""
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
                CapabilityError, self.name, "padding, or tokens at places of their own",
                "rows of equal length, from 0 on", "run texts of other lengths one by one",
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
        """Chunks [b, h, p, count] that bare queries q [b, h, p, d] at places [p] read, in order."""
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

        def gathered(x: Tensor) -> Tensor:  # each query a row of the batch, each head its own keys
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
    """Landmarks [b, h, t, d] of pages [b, h + 2 g, t, w, d]: queries, keys and values, bare."""
    b, _, t, w, _ = pages.shape
    rows = pages.transpose(1, 2).flatten(0, 1)  # [b t, heads, w, d]
    line = torch.arange(w, device=pages.device)
    q, k, v = rows.split((h, g, g), 1)
    q, k = turn.turn(q, line), turn.turn(k, line)
    mean = attend(q, k, v, rule).mean(2, keepdim=True)
    return attend(mean, k, k, rule).view(b, t, h, -1).transpose(1, 2)
