"""A single query for each row, as in decoding: with its weights, or over some of the keys alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from regard.core.call import Call
from regard.core.heads import as_rows, rows_of, take_keys, take_rows
from regard.core.partial import wide
from regard.run.fused import product, why_not_product
from regard.run.paged import by_kernel, selected_partial
from regard.run.plan import chosen


def plain_scale(call: Call) -> float | None:
    """Give the scale of a call that is a softmax of scale q . k, and nothing else; or None."""
    made = call.rule.score.match.prepare(call.q, call.k) if call.rule.plain else None
    return None if made is None else made[2]


def weighed(call: Call) -> tuple[Tensor, Tensor] | None:
    """Give out [b, h, n, e] and the weights [b, h, n, m], under a rule that is blind to place.

    None where the rule is no plain softmax of a product. Queries that share a key head are taken
    together, so that no head is expanded.

    >>> q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 9, 8)
    >>> out, weights = weighed(Call(q, k, k))
    >>> out.shape, weights.shape
    (torch.Size([1, 4, 1, 8]), torch.Size([1, 4, 1, 9]))
    """
    if _why_not_plain(call):
        return None
    q, k, scale = product(call)
    scores = _by_key_head(q, call.g) @ k.transpose(2, 3)
    weights = (scores * scale).softmax(-1, dtype=wide(call.q.dtype))
    out = weights.to(call.v.dtype) @ call.v
    return out.view(call.b, call.h, call.n, call.e), weights.view(call.b, call.h, call.n, call.m)


def over_slots(call: Call, slots: Tensor, executor: str | None = None) -> Tensor:
    """Give out [b, h, 1, e] of single queries over the keys of slots [b, g, c] alone.

    The rule must be blind to place, and every slot hold a real key. Keys are read where they lie,
    for a copy would be written and read once more: on a GPU by the kernel of `selected_partial`, on
    a CPU by PyTorch's embedding bags. `executor=` forces "triton" or "gathered", as there.

    >>> q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 9, 8)
    >>> some = torch.tensor([[[0, 3], [8, 1]]])
    >>> torch.allclose(over_slots(Call(q, k, k), some), over_slots(Call(q, k, k), some.flip(2)))
    True
    """
    if executor == "triton" or call.q.device.type == "cuda":
        scale = None if call.dropout else plain_scale(call)
        if scale is not None and by_kernel(executor, call.q, call.k, call.v):
            return selected_partial(
                call.q, call.k, call.v, slots, scale=scale, executor=executor
            ).out  # fmt: skip
    keys, values = as_rows(call.k), as_rows(call.v)
    if _elsewhere(call) or keys is None or values is None:
        call = call.replace(k=take_keys(call.k, slots), v=take_keys(call.v, slots))
        return chosen(call).out(call)
    at = rows_of(call.k, slots)
    k = take_rows(keys, at).view(*slots.shape, -1)
    q, k, scale = product(call.replace(k=k, v=k))
    weights = ((_by_key_head(q, call.g) @ k.transpose(2, 3)) * scale).softmax(-1)
    if call.v.stride() != call.k.stride():
        at = rows_of(call.v, slots)
    if call.h == call.g:
        starts = torch.arange(0, len(at), slots.shape[2])
        out = embedding_bag(at, values, starts, mode="sum", per_sample_weights=weights.flatten())
    else:  # several queries read each value
        out = weights @ take_rows(values, at).view(*slots.shape, -1)
    return out.view(call.b, call.h, 1, call.e)


def _elsewhere(call: Call) -> bool:
    """Whether a call over some keys is for the executors: off the CPU, say, or with gradients."""
    return (
        call.q.device.type != "cpu" or call.q.dtype != torch.float32 or call.needs_grad
        or bool(call.dropout) or _why_not_plain(call) != ""
    )  # fmt: skip


def _why_not_plain(call: Call) -> str:
    """Say why a call is no softmax of a product with nothing beside, or nothing if it is."""
    if call.rule.weigh.closes:
        return "has a sink"
    if not call.rule.placeless:
        return "asks where tokens stand"
    return why_not_product(call)


def _by_key_head(q: Tensor, g: int) -> Tensor:
    """Queries [b, h, n, d] that share a key head in one: [b, g, h / g * n, d]."""
    made: Tensor = q.unflatten(1, (g, -1)).flatten(2, 3)
    return made


__all__ = ["over_slots", "plain_scale", "weighed"]
