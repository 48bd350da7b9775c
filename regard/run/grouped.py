"""Rules whose heads differ: heads of one support are planned and run together."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.heads import gather_heads, key_heads_of
from regard.core.partial import Partial
from regard.core.support.base import Support
from regard.run.executor import Answer, Cost, Executor, No, Yes
from regard.run.isolation import unrecorded
from regard.run.transforms import Transforms


class Grouped(Executor):
    """Split the heads of a `PerHead` support into groups, and run each as its own call."""

    name = "grouped"
    transforms = Transforms.ANY

    def can(self, call: Call) -> Answer:
        """Only supports that say what each head does."""
        found = _groups(call.rule.support)
        if found is None:
            return No("all heads share one support")
        if call.k_positions is not None and call.k_positions.dim() == 3:
            return No("each head keeps keys of its own")
        return Yes(f"{len(found)} groups of heads")

    def cost(self, call: Call) -> Cost:
        """The cost of the groups, each by its own plan."""
        from regard.run.plan import make_plan  # plan asks this executor, which asks plan

        with unrecorded():
            costs = [make_plan(part).cost for _, part in _parts(call)]
        return Cost(
            sum(c.flops for c in costs),
            sum(c.bytes for c in costs),
            max(c.held for c in costs),
            sum(c.weight for c in costs) / max(sum(c.flops + 10 * c.bytes for c in costs), 1.0),
        )

    def run(self, call: Call) -> Partial:
        """Run each group, and put its heads back where they belong."""
        from regard.run.runner import partial_of  # it runs this executor

        heads: list[int] = []
        made: list[Partial] = []
        for some, part in _parts(call):
            heads += some
            made.append(partial_of(part))
        back = torch.argsort(torch.tensor(heads, device=call.q.device))
        out = torch.cat([p.out for p in made], 1).index_select(1, back)
        lses = [p.lse for p in made if p.lse is not None]
        return Partial(out, torch.cat(lses, 1).index_select(1, back) if lses else None)


def _groups(support: Support) -> dict[Support, list[int]] | None:
    """Return the heads of each distinct support, or None where all share one."""
    supports = support.per_head()
    if supports is None:
        return None
    found: dict[Support, list[int]] = {}
    for head, own in enumerate(supports):
        found.setdefault(own, []).append(head)
    return found


def _parts(call: Call) -> list[tuple[list[int], Call]]:
    """Return the heads and the call of each group."""
    found = []
    for support, heads in (_groups(call.rule.support) or {}).items():
        keys = key_heads_of(heads, call.h, call.g)
        rule = call.rule.take_heads(heads)
        part = call.replace(
            q=gather_heads(call.q, heads),
            k=gather_heads(call.k, _shared(keys)),
            v=gather_heads(call.v, _shared(keys)),
            rule=rule.replace(support=support.take_heads(heads)),
        )
        found.append((heads, part))
    return found


def _shared(keys: list[int]) -> list[int]:
    """Keep key heads once each where every one serves equally many of the query heads in a row."""
    distinct = list(dict.fromkeys(keys))
    share = len(keys) // len(distinct)
    return distinct if keys == [k for k in distinct for _ in range(share)] else keys
