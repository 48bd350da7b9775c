"""A single query for each row, as in decoding: with its weights, or over some of the keys alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from regard.core.call import Call
from regard.core.heads import as_rows, rows_of, take_rows
from regard.core.keys import Dense, Keys, Slots
from regard.core.partial import Partial, wide
from regard.run.counting import bytes_of, count
from regard.run.executor import Answer, Cost, Executor, No, Yes
from regard.run.fused import product, why_not_product


class Decode(Executor):
    """Few queries, all of which attend to all keys: weights at once, and slots without a copy.

    Queries that share a key head are taken together, so that no head is expanded.

    >>> from regard.run.runner import run
    >>> q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 9, 8)
    >>> found = run(Call.of(q, k, k), ("weights",))
    >>> found.executor, found.weights.shape
    ('decode', torch.Size([1, 4, 1, 9]))
    >>> run(Call(q, Dense(k, k).take(torch.tensor([[[0, 3], [8, 1]]])))).executor
    'decode'
    """

    name = "decode"
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "slots"})
    weighs: ClassVar[bool] = True

    def can(self, call: Call) -> Answer:
        """Softmax of a product over all keys, whatever their positions, for a single query."""
        if call.n != 1:
            return No(f"{call.n} queries: it takes one at a time")
        if not call.rule.position_free or call.placed:
            return No("positions matter, or some slots are empty")
        inner: Keys = call.keys.keys if isinstance(call.keys, Slots) else call.keys
        reason = why_not_product(call.replace(keys=inner))
        if reason:
            return No(reason)
        if call.dropout:
            return No("drops no weights")
        return self._why_not_slots(call) if _is_slots(call) else Yes()

    def _why_not_slots(self, call: Call) -> Answer:
        """Return whether slots can be read where they are."""
        keys = call.keys
        assert isinstance(keys, Slots)
        inner = keys.keys
        if call.q.device.type != "cpu" or call.q.dtype != torch.float32:
            return No("slots are read in float32 on a CPU")
        if call.needs_grad:
            return No("a gradient is wanted, and slots are read without one")
        if not isinstance(inner, Dense):
            return No(f"slots of {inner.form} keys")
        if as_rows(inner.k) is None or as_rows(inner.v) is None:
            return No("keys do not lie in rows")
        return Yes("slots read where they are")

    def cost(self, call: Call) -> Cost:
        """Scores, weights, values; of slots as many as there are."""
        pairs = float(call.b * call.h * call.n * call.m)
        size = call.q.element_size()
        moved = size * call.b * call.g * call.m * (call.d + call.e)
        return Cost(2.0 * pairs * (call.d + call.e), moved + 12.0 * pairs, 8.0 * pairs, 1.2)

    def run(self, call: Call) -> Partial:
        """Attend, and take the log-sum-exp of the scores."""
        if isinstance(call.keys, Slots):
            return self._over_slots(call, call.keys, lse=True)
        return self._weighed(call)[0]

    def out(self, call: Call) -> Tensor:
        """Attend without the log-sum-exp."""
        if isinstance(call.keys, Slots):
            return self._over_slots(call, call.keys, lse=False).out
        return self._weighed(call)[0].out

    def weighed(self, call: Call) -> tuple[Partial, Tensor]:
        """Attend, and return the weights [b, h, 1, m]."""
        if type(call.keys) is Slots:  # weights are of the keys in the order of `dense`
            call = call.replace(keys=call.keys.dense())
        return self._weighed(call)

    def _weighed(self, call: Call) -> tuple[Partial, Tensor]:
        b, h, n, _ = call.q.shape
        q, k, scale = product(call)
        v = call.v
        g, m = k.shape[1:3]
        scores = (_by_key_head(q, g) @ k.transpose(2, 3)).to(wide(q.dtype)) * scale
        count(b * h * n * m, k.shape[3] + v.shape[3], bytes_of(k, v) + 3 * bytes_of(scores))
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp_()
        out = (weights.to(v.dtype) @ v).view(b, h, n, -1)
        return Partial(out, lse.view(b, h, n)), weights.view(b, h, n, m)

    def _over_slots(self, call: Call, some: Slots, *, lse: bool) -> Partial:
        """Attend to the keys of slots [b, g, c]: a copy would be written and read once more."""
        whole, slots = some.keys.dense(), some.slots
        slots = slots.expand(*whole.k.shape[:2], -1)
        keys, values = as_rows(whole.k), as_rows(whole.v)
        assert keys is not None
        assert values is not None
        b, h, n, _ = call.q.shape
        at = rows_of(whole.k, slots)
        k = take_rows(keys, at).view(*slots.shape, -1)
        q, k, scale = product(Call(call.q, Dense(k, k), call.rule))
        scores = (_by_key_head(q, k.shape[1]) @ k.transpose(2, 3)) * scale
        weights = scores.softmax(-1)
        if whole.v.stride() != whole.k.stride():
            at = rows_of(whole.v, slots)
        c, e = slots.shape[2], whole.v.shape[3]
        read = 4.0 * b * k.shape[1] * c * (k.shape[3] + e)
        count(b * h * n * c, k.shape[3] + e, 2 * read)
        if h == k.shape[1]:
            starts = torch.arange(0, len(at), c)
            out = embedding_bag(
                at, values, starts, mode="sum", per_sample_weights=weights.flatten()
            )
        else:  # several queries read each value
            out = weights @ take_rows(values, at).view(*slots.shape, -1)
        found = scores.logsumexp(-1).view(b, h, n) if lse else None
        return Partial(out.view(b, h, n, e), found)


def _is_slots(call: Call) -> bool:
    return isinstance(call.keys, Slots)


def _by_key_head(q: Tensor, g: int) -> Tensor:
    """Queries [b, h, n, d] that share a key head in one: [b, g, h / g * n, d]."""
    return q.reshape(q.shape[0], g, q.shape[1] // g * q.shape[2], q.shape[3])


__all__ = ["Decode"]
