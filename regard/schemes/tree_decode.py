"""Tree decoding: all ranks attend from the same queries to their own keys, and merge outputs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from regard.core.call import Call
from regard.core.keys import Dense
from regard.core.partial import Partial, merge, wide
from regard.run.runner import partial_of
from regard.run.transforms import no_second_derivative
from regard.schemes.part_gradients import pulled_back
from regard.schemes.ring_attention import learned_by, learns_unseen_by
from regard.schemes.scheme import Scheme, row_terms
from regard.schemes.sharded_keys import ShardedKeys


class TreeDecode(Scheme):
    """Attend from the same queries to the keys of every rank, and merge (out, lse).

    A message is an output and its lse: h (e + 1) numbers per query, whatever the context length.
    Keys stay where they are, in any form. Every rank gets the same output, bit for bit, and the
    same gradients of q and of the parameters of a rule.
    """

    name = "tree"
    same_queries: ClassVar[bool] = True

    def refuses(self, call: Call, keys: ShardedKeys) -> str:
        """Reject parameters it cannot find."""
        return learns_unseen_by(call)

    def pairs(self, call: Call, keys: ShardedKeys) -> list[float]:
        """Count every query with the keys of a rank."""
        return [float(call.b * call.h * call.n * c) for c in keys.layout.counts()]

    def bytes_sent(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Count an output and its lse to each other rank."""
        one = call.e if call.rule.weigh.sums else call.e + 1
        others = keys.peers.world - 1
        each = call.b * call.h * call.n * one * wide(call.q.dtype).itemsize
        return [others * each] * keys.peers.world

    def spread(self, call: Call, keys: ShardedKeys) -> Partial:
        """Attend to own keys, exchange, merge."""
        own = keys.own
        given = (own.k, own.v) if isinstance(own, Dense) else own.tensors()
        learned = learned_by(call)
        out, lse = _Tree.apply(call, keys, len(given), call.q, *given, *learned)  # type: ignore[no-untyped-call]
        return Partial(out, lse)


def _here(call: Call, keys: ShardedKeys, q: Tensor, given: tuple[Tensor, ...]) -> Partial:
    """Attend to the keys of this rank."""
    own = keys.own
    if isinstance(own, Dense):
        line = torch.arange(own.m)
        own = Dense(given[0], given[1], keys.positions_of(line, keys.peers.rank))
    part = partial_of(Call(q, own, call.rule, call.q_positions))
    return Partial(part.out.to(wide(q.dtype)), part.lse)


class _Tree(Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, keys: ShardedKeys, many: int, q: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        part = _here(call, keys, q, tensors[:many])
        packed = part.out if part.lse is None else torch.cat((part.out, part.lse[..., None]), -1)
        found = keys.peers.everyone(packed, "merging outputs")
        e = part.out.shape[-1]
        # In the order of the ranks: the same on all of them, bit for bit.
        merged = merge(*(
            Partial(x[..., :e], None if part.lse is None else x[..., e]) for x in found.unbind(0)
        ))  # fmt: skip
        ctx.call, ctx.keys, ctx.many, ctx.number = call, keys, many, keys.peers.calls
        ctx.save_for_backward(q, *merged, *tensors)
        return merged.out.to(q.dtype), merged.lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            no_second_derivative("tree")
        q, out, lse, *tensors = ctx.saved_tensors
        call, keys, many = ctx.call, ctx.keys, ctx.many
        given, learned = tensors[:many], tensors[many:]
        d_row = row_terms(grads[0], grads[1], out, lse)
        with torch.enable_grad():
            own_q = q.detach().requires_grad_(True)
            own = tuple(
                x.detach().requires_grad_(x.is_floating_point())
                if isinstance(keys.own, Dense)
                else x
                for x in given
            )
            part = _here(call, keys, own_q, own)
            asked = (own_q, *(own if isinstance(keys.own, Dense) else ()), *learned)
            found = pulled_back(part, grads[0], lse, d_row, asked)
        d_q, *rest = (
            torch.zeros_like(x) if y is None else y for x, y in zip(asked, found, strict=True)
        )
        d_own = rest[: len(rest) - len(learned)]
        # Inputs shared by all ranks get the gradients of all.
        shared = [
            keys.peers.total(x, "the backward of tree", call=ctx.number)
            for x in (d_q.to(wide(q.dtype)), *rest[len(d_own) :])
        ]
        filled = [*d_own, *[None] * (many - len(d_own))]
        return None, None, None, shared[0].to(q.dtype), *filled, *shared[1:]
