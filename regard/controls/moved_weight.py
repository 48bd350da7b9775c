"""The effect of a control on a call: weights of some queries, before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.score import LowRankBias, QueryBias, Temperature
from regard.core.score.dense import DenseBias
from regard.run.runner import run

# The number of queries of a call that a receipt reads; the last one is always among them.
LOOKED_AT = 4
# Parts of steps that have a row for each query, and its axis.
BY_ROW = {LowRankBias: "u", Temperature: "query", DenseBias: "bias", QueryBias: "table"}


def rows_at(call: Call, rows: Tensor) -> Call:
    """Return the call with only some queries, `rows` [b, r] of each row of the batch.

    >>> q = torch.randn(2, 1, 5, 4)
    >>> rows_at(Call.of(q, q, q), torch.tensor([[4], [3]])).n
    1
    """
    rows = rows.to(call.q.device)
    if call.n == rows.shape[1] == 1:
        return call
    position = torch.arange(call.n, device=call.q.device)[None]
    if call.q_positions is not None:
        position = call.q_positions.to(call.q.device)
        position = position if position.dim() == 2 else position[None]
    index = rows[:, None, :, None]
    q = call.q.gather(2, index.expand(-1, call.h, -1, call.d))
    steps = tuple(_step_at(step, rows, call.n) for step in call.rule.score.steps)
    rule = call.rule.replace(score=call.rule.score.replace(steps=steps))
    return call.replace(
        q=q, rule=rule, q_positions=position.expand(call.b, -1).gather(1, rows), dropout=0.0
    )


def _step_at(step: Any, rows: Tensor, n: int) -> Any:
    name = BY_ROW.get(type(step), getattr(step, "row_part", None))
    x: Tensor | None = getattr(step, name) if name else None
    if x is None or x.shape[2] != n or n == 1:
        return step
    x = x.expand(rows.shape[0], *x.shape[1:])
    index = rows.to(x.device).view(rows.shape[0], 1, -1, *(1,) * (x.dim() - 3))
    size = (*x.shape[:2], rows.shape[1], *x.shape[3:])
    return step.replace(**{str(name): x.gather(2, index.expand(size)).contiguous()})


def rows_to_look_at(at: EditContext, chosen: Tensor) -> Tensor:
    """Return some queries that a control acts on, [b, r]: the last one, and some before it.

    `chosen` bool [b or 1, h or 1, n or 1] says where it acts.
    """
    call = at.call
    if call.n == 1:
        return torch.zeros(call.b, 1, dtype=torch.long)
    own = chosen.any(1).expand(call.b, call.n)
    padding = at.forward.padding
    if padding is not None and padding.shape[0] == call.b and padding.shape[1] >= call.n:
        real = padding[:, -call.n :].to(own.device).bool()
        own = torch.where((own & real).any(1, keepdim=True), own & real, own)
    found = [row.nonzero().flatten() for row in own.cpu()]
    found = [row if len(row) else torch.tensor([call.n - 1]) for row in found]
    # Equally many in each row of the batch, no query twice.
    many = min(LOOKED_AT, *(len(row) for row in found))
    return torch.stack([
        row[torch.linspace(len(row) - 1, 0, many).round().long().flip(0)] for row in found
    ])  # fmt: skip


def measured(
    old: Call, new: Call, rows: Tensor, sets: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Return the mass on each set before and after, [b, h], and how much moved.

    `sets` are bool [b or 1, h or 1, m] over the keys of the old call; what the new one attends to
    beyond these is "extra keys".
    """
    if new is old and not sets:  # an edit of outputs alone
        return {}, {}, 0.0
    # The reference gives weights and output at once; of a few rows that is the least work. Most of
    # it would be to expand the heads of the keys, which both have in common.
    few = rows_at(old, rows)
    few = few.replace(k=expand_heads(few.k, few.h), v=expand_heads(few.v, few.h))
    a = b = run(few, ("weights",), executor="reference")
    if new is not old:
        other = rows_at(new, rows)
        if new.k is old.k and new.v is old.v:
            other = other.replace(k=few.k, v=few.v)
        b = run(other, ("weights",), executor="reference")
    assert a.weights is not None
    assert b.weights is not None
    own = b.weights[..., : old.m]
    extra = b.weights[..., old.m :]
    before, after = {}, {}
    for name, chosen in sets.items():
        mark = chosen[:, :, None].to(a.weights)
        before[name], after[name] = ((x * mark).sum(-1).mean(2).cpu() for x in (a.weights, own))
    if extra.shape[-1]:
        after["extra keys"] = extra.sum(-1).mean(2).cpu()
        before["extra keys"] = torch.zeros_like(after["extra keys"])
    apart = ((own - a.weights).abs().sum(-1) + extra.abs().sum(-1)) / 2
    return before, after, max(float(apart.max()), difference(a.out, b.out))


def difference(old: Tensor, new: Tensor) -> float:
    """Return the largest change of an output, relative to its largest entry."""
    if old is new:
        return 0.0
    return float(_largest(new.float() - old.float()) / _largest(old).float().clamp(min=1e-12))


def _largest(x: Tensor) -> Tensor:
    """Return the largest size of an entry; on a CPU in a tenth of the time of `x.abs().max()`."""
    return torch.maximum(x.amax(), -x.amin())
