"""Gather the keys that a rank needs, then attend once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from regard.core.call import Call
from regard.core.method import method
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.run.transforms import no_second_derivative
from regard.schemes.part_gradients import kernel_blocks, part_grads
from regard.schemes.ring_attention import learned_by
from regard.schemes.scheme import Scheme, partial_over, queries_of, row_terms, work
from regard.schemes.sharded_keys import ShardedKeys, arrived, gathered


@method(
    "unified_token_mixing_dist_mha", call="regard.attend(q, keys, rule=rule, executor='gather')"
)
class KeyGather(Scheme):
    """Gather all keys that this rank's queries may attend to, and attend to them at once.

    Gradients of keys and values are sent back and summed by their owners. It takes one exchange and
    one kernel, with memory for every key needed: all of them, unless the rule leaves some out.
    """

    name = "gather"

    def bytes_sent(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Count keys and values, once for each rank that needs them."""
        each = call.b * call.g * (call.d + call.e) * call.q.element_size()
        return [rows * each for rows in work(call, keys).rows_sent()]

    def held(self, call: Call, keys: ShardedKeys) -> float:
        """Count the bytes of the keys that the rank with the most needs."""
        each = call.b * call.g * (call.d + call.e) * call.q.element_size()
        return float(max(each * sum(map(len, row)) for row in work(call, keys).needed))

    def spread(self, call: Call, keys: ShardedKeys) -> Partial:
        """Gather the keys, and attend."""
        needed, rank = work(call, keys).needed, keys.peers.rank
        k, v = gathered(keys, keys.own.dense(), needed, "gathering keys")
        i, j = queries_of(keys).positions(rank), arrived(keys, needed[rank]).sort().values
        if not learned_by(call) and kernel_blocks(call.rule, call.q, k, v, i, j, keys.real):
            out, lse = _Blocks.apply(call.rule, i, j, call.q, k, v)  # type: ignore[no-untyped-call]
            return Partial(out, lse)
        return partial_over(call.rule, call.q, k, v, i, j, keys.real)


class _Blocks(Function):
    """Blocks that kernels support, with gradients accumulated in place."""

    @staticmethod
    def forward(
        ctx: Any, rule: Rule, i: Tensor, j: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        part = partial_over(rule, q, k, v, i, j)
        ctx.rule, ctx.at = rule, (i, j)
        ctx.save_for_backward(q, k, v, *part)
        return part.out, part.lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            no_second_derivative("gather")
        q, k, v, out, lse = ctx.saved_tensors
        i, j = ctx.at
        d_out, d_lse = grads
        alone = d_lse is None or not bool(d_lse.any())
        found = part_grads(
            ctx.rule, q, k, v, i, j, None, d_out, lse, row_terms(d_out, d_lse, out, lse),
            out=out if alone else None,
        )  # fmt: skip
        return None, None, None, *found
