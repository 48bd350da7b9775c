"""Heads that keep different numbers of keys: those that keep equally many run together."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.autocast import has_autocast
from regard.core.call import Call
from regard.core.heads import gather_heads
from regard.core.key_forms import Ragged
from regard.core.partial import Partial
from regard.core.score.biases import PlaceStep
from regard.core.support.chosen import asks_for_more
from regard.run.executor import LAUNCH, Answer, Cost, Executor, No, Yes
from regard.run.fused import single


class RaggedHeads(Executor):
    """Run each group of heads over its own keys, by its own plan: nothing is filled up."""

    name = "ragged"
    reads: ClassVar[frozenset[str]] = frozenset({"ragged"})

    def can(self, call: Call) -> Answer:
        """Any rule that can be cut by heads."""
        keys = call.keys
        if not isinstance(keys, Ragged):
            return No(f"reads ragged keys, not {keys.form}")
        if call.dropout:
            return No("drops no weights")
        support, steps = call.rule.support, call.rule.score.steps
        if support.tensors() or asks_for_more(support, call.q.device):
            return No(f"{support} may count heads or keys, which groups number anew")
        own = next((x for x in steps if isinstance(x, PlaceStep)), None)
        if own is not None:
            return No(f"{own} may count heads or keys, which groups number anew")
        return Yes(f"{len(keys.parts)} groups of heads")

    def cost(self, call: Call) -> Cost:
        """Each head costs the keys it keeps."""
        assert isinstance(call.keys, Ragged)
        kept = call.keys.count
        pairs = call.b * call.h * call.n * kept
        moved = call.q.element_size() * call.b * call.g * kept * (call.d + call.e)
        launches = LAUNCH * len(call.keys.parts)
        return Cost(2.0 * pairs * (call.d + call.e) + launches, moved)

    def run(self, call: Call) -> Partial:
        """Run the groups with their log-sum-exp."""
        from regard.run.runner import partial_of  # it runs this executor

        made = [(heads, partial_of(part)) for heads, part in self._parts(call)]
        out = _joined(call, [(heads, p.out) for heads, p in made])
        lses = [(heads, p.lse) for heads, p in made if p.lse is not None]
        return Partial(out, _joined(call, lses) if lses else None)

    def out(self, call: Call) -> Tensor:
        """Run the groups for their output: by one kernel each, where nothing else is asked."""
        keys, rule, q = call.keys, call.rule, call.q
        assert isinstance(keys, Ragged)
        if q.shape[2] == 1 and rule.plain and keys.full and not call.needs_grad:
            scale = rule.score.match.scale  # type: ignore[attr-defined]
            dense = keys.all_dense
            autocast = has_autocast(q.device)
            if dense and not autocast and (scale is None or scale > 0):
                return self._plain(q, keys, scale)
        from regard.run.runner import run  # it runs this executor

        return _joined(call, [(heads, run(part).out) for heads, part in self._parts(call)])

    def _plain(self, q: Tensor, keys: Ragged, scale: float | None) -> Tensor:
        """Attend from single queries q [b, h, 1, d] to all keys of their heads."""
        b, h, _, d = q.shape
        by_key = q.view(b, keys.shape[1], -1, d)  # queries that share a key head are rows of one
        out = q.new_empty(*by_key.shape[:3], keys.shape[4])
        for heads, own in keys.parts:
            row = len(heads) == heads[-1] + 1 - heads[0]
            some: Any = slice(heads[0], heads[-1] + 1) if row else list(heads)
            out[:, some] = single(by_key[:, some], own.k, own.v, scale)  # type: ignore[attr-defined]
        return out.view(b, h, 1, -1)

    def _parts(self, call: Call) -> list[tuple[list[int], Call]]:
        """Return query heads and the call of each group; sinks come later, to all at once."""
        keys, share = call.keys, call.h // call.g
        assert isinstance(keys, Ragged)
        found = []
        # Where nothing in it belongs to heads, all groups follow one rule, planned once.
        shared = call.rule.position_free and not call.rule.tensors()
        for heads, own in keys.parts:
            queries = [h * share + i for h in heads for i in range(share)]
            rule = call.rule if shared else call.rule.take_heads(queries)
            part = Call(gather_heads(call.q, queries), own, rule, call.q_positions, 0.0, call.site)
            found.append((queries, part))
        return found


def _joined(call: Call, parts: list[tuple[list[int], Tensor]]) -> Tensor:
    """Put x [b, heads, ...] of each group where its heads belong."""
    heads = [h for own, _ in parts for h in own]
    if heads == list(range(call.h)):
        return torch.cat([x for _, x in parts], 1)
    back = [0] * len(heads)
    for place, head in enumerate(heads):
        back[head] = place
    return torch.cat([x for _, x in parts], 1)[:, back]


__all__ = ["RaggedHeads"]
