"""A single query meets what a memory holds, where the rule does not ask where keys stand.

Most steps of decoding are this, so it does as little as it can.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from regard.core.call import Call
from regard.core.heads import gather_heads
from regard.memories.base import KeyMemory
from regard.memories.head_pages import HeadPages
from regard.memories.kept import Kept
from regard.memories.split import Split
from regard.run.few import plain_scale, weighed
from regard.run.fused import single
from regard.run.plan import chosen


class Met(NamedTuple):
    """What a step gives: out [b, h, 1, e], keys met by a head on average, and weights if asked."""

    out: Tensor
    keys: float
    weights: Tensor | None = None


def meet(call: Call, memory: KeyMemory, *, weigh: bool = False) -> Met | None:
    """Attend from the single queries of a call to all that a memory holds, in place of its keys.

    The rule must be placeless. None where that is not enough, as with padding: who asks then reads
    the memory with its positions.

    >>> import torch
    >>> memory, q = Kept(), torch.randn(1, 4, 1, 8)
    >>> memory.extend(torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8))
    >>> found = meet(Call(q, q[:, :2], q[:, :2]), memory, weigh=True)
    >>> found.out.shape, found.keys, found.weights.shape
    (torch.Size([1, 4, 1, 8]), 9.0, torch.Size([1, 4, 1, 9]))
    """
    if not weigh and (isinstance(memory, HeadPages) or (on_gpu(call) and isinstance(memory, Kept))):
        scale = None if call.dropout else plain_scale(call)
        found = None if scale is None else memory.attend(call.q, scale)
        if found is not None:
            return Met(found.out, memory.held)
    kept = memory.unplaced()
    if kept is not None:
        k, v = kept
        call = Call(call.q, k, v, call.rule, call.q_positions, None, call.dropout, call.site)
        both = weighed(call) if weigh else None
        out, weights = (_out(call), None) if both is None else both
        return Met(out, float(call.m), weights)
    if weigh:
        return None
    return _by_groups(call, memory) if isinstance(memory, Kept | Split) else None


def on_gpu(call: Call) -> bool:
    """Whether kernels that read keys as they lie, packed or in pages, are the way of a call."""
    return call.q.device.type == "cuda"


def _out(call: Call) -> Tensor:
    """Run a call, by PyTorch's kernel where it is nothing but a softmax."""
    scale = plain_scale(call)
    if scale is not None:
        return single(call.q, call.k, call.v, scale, call.dropout)
    runs = chosen(call)
    closes = call.rule.weigh.closes
    return call.rule.weigh.close(runs.run(call)).out if closes else runs.out(call)


def _by_groups(call: Call, memory: Kept | Split) -> Met | None:
    """Attend by groups of heads that keep equally many keys, without filling them up."""
    share, kept = call.h // call.g, []
    for heads, own in memory.groups():
        pair = own.unplaced()
        if pair is None:
            return None
        kept.append((heads, *pair))
    if not kept:
        return None
    out = call.q.new_empty(call.b, call.h, call.n, kept[0][2].shape[3])
    for heads, k, v in kept:
        queries = [h * share + i for h in heads for i in range(share)]
        rule = call.rule.take_heads(queries)
        out[:, queries] = _out(call.replace(q=gather_heads(call.q, queries), k=k, v=v, rule=rule))
    return Met(out, sum(len(heads) * k.shape[2] for heads, k, _ in kept) / call.g)


__all__ = ["Met", "meet", "on_gpu"]
