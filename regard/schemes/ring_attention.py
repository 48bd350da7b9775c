"""Ring attention: blocks of keys arrive one after another while the previous one is in use."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from regard.core.call import Call
from regard.core.method import method
from regard.core.partial import Partial, merge, nothing, wide
from regard.run.chunked import learns_unseen, reached_learned
from regard.run.transforms import no_second_derivative
from regard.schemes.ring_passes import Back, keys_travel, passing, queries_travel
from regard.schemes.scheme import Scheme, partial_over, queries_of, row_terms, work
from regard.schemes.sharded_keys import ShardedKeys


@method(
    "ring_attention",
    call="from regard.schemes import ShardedKeys\n"
    "regard.attend(q, ShardedKeys.of(k, v, mesh, 'cp'), rule=rule)",
)
class RingAttention(Scheme):
    """Pass the keys of every rank to all others; a rank holds one block besides its own.

    At step s rank r has the keys of rank r - s, which arrived while it attended to the previous
    ones. Only keys that some query of r may attend to are sent. The backward passes them again, and
    returns their gradients; only q, k, v, out and lse are kept.
    """

    name = "ring"
    exposed: ClassVar[float] = 0.5
    # Whether queries travel in the backward, instead of keys.
    queries_travel: ClassVar[bool] = False

    def refuses(self, call: Call, keys: ShardedKeys) -> str:
        """Reject parameters it cannot find: their gradient is computed block by block."""
        return learns_unseen_by(call)

    def rounds(self, keys: ShardedKeys) -> int:
        """Count one for each rank."""
        return keys.peers.world

    def held(self, call: Call, keys: ShardedKeys) -> float:
        """Count two blocks: one in use while the next arrives."""
        return 2.0 * keys.nbytes

    def bytes_sent(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Count keys and values, once for each rank that needs them: rows g (d + e) bytes."""
        each = call.b * call.g * (call.d + call.e) * call.q.element_size()
        return [rows * each for rows in work(call, keys).rows_sent()]

    def bytes_sent_back(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Count bytes sent by each rank in the backward: keys, values, and their gradients."""
        needed = work(call, keys).needed
        ranks = range(keys.peers.world)
        each = call.b * call.g * (call.d + call.e) * call.q.element_size()
        return [
            each * sum(len(needed[s][r]) + len(needed[r][s]) for s in ranks if s != r)
            for r in ranks
        ]

    def spread(self, call: Call, keys: ShardedKeys) -> Partial:
        """Run the ring; its backward is another ring."""
        learned = learned_by(call)
        own = keys.own.dense()
        out, lse = _Ring.apply(self, call, keys, call.q, own.k, own.v, *learned)  # type: ignore[no-untyped-call]
        return Partial(out, lse)

    def backward(self, call: Call, keys: ShardedKeys, back: Back) -> list[Tensor]:
        """Return the gradients of q, k, v and of the parameters of the rule."""
        return keys_travel(call, keys, back)


@method("burst_attention", call="regard.attend(q, keys, rule=rule, executor='burst')")
class BurstAttention(RingAttention):
    """A ring whose backward passes queries with their gradients, while keys stay.

    Each hop carries q, d_out, two numbers for each query, and dq back: 3 n d + 2 n instead of the
    4 n d of keys, values and their gradients, where there are as many key heads as query heads.
    """

    name = "burst"
    queries_travel: ClassVar[bool] = True

    def rounds(self, keys: ShardedKeys) -> int:
        """Return why it cannot run, as a ring; without gradients it is never better."""
        return keys.peers.world + 1

    def bytes_sent_back(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Count queries, output gradients, two numbers per query, and query gradients back."""
        asking, ranks = work(call, keys).asking, range(keys.peers.world)
        size, few = call.q.element_size(), 0 if call.rule.weigh.sums else 2
        out = call.b * call.h * ((call.d + call.e) * size + few * wide(call.q.dtype).itemsize)
        back = call.b * call.h * call.d * size
        return [
            sum(out * len(asking[r][s]) + back * len(asking[s][r]) for s in ranks if s != r)
            for r in ranks
        ]

    def backward(self, call: Call, keys: ShardedKeys, back: Back) -> list[Tensor]:
        """Run the backward in which queries travel."""
        return queries_travel(call, keys, back)


def learned_by(call: Call) -> tuple[Tensor, ...]:
    """Return the tensors of a score that require gradients."""
    score = call.rule.score
    return tuple(x for x in (*score.tensors(), *reached_learned(score)) if x.requires_grad)


def learns_unseen_by(call: Call) -> str:
    """Return the parameters of a score's function that cannot be found, or nothing."""
    unseen = learns_unseen(call) if torch.is_grad_enabled() else ""
    return f"{unseen}; make them fields of a step" if unseen else ""


class _Ring(Function):
    @staticmethod
    def forward(
        ctx: Any, scheme: RingAttention, call: Call, keys: ShardedKeys, q: Tensor, k: Tensor,
        v: Tensor, *learned: Tensor,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        i = queries_of(keys).positions(keys.peers.rank)
        out: Partial | None = None
        for _, own_k, own_v, j in passing(call, keys, k, v):
            if len(j) and len(i):
                part = partial_over(call.rule, q, own_k, own_v, i, j, keys.real)
                out = part if out is None else merge(out, part)
        if out is None:
            like = q.new_zeros(*q.shape[:3], v.shape[3], dtype=wide(q.dtype))
            out = nothing(like, sums=call.rule.weigh.sums)
        ctx.scheme, ctx.call, ctx.keys, ctx.number = scheme, call, keys, keys.peers.calls
        ctx.save_for_backward(q, k, v, *out, *learned)
        return out.out.to(q.dtype), out.lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            no_second_derivative("ring")
        q, k, v, out, lse, *learned = ctx.saved_tensors
        d_out, d_lse = grads
        d_row = row_terms(d_out, d_lse, out, lse)
        alone = d_lse is None or not bool(d_lse.any())
        back = Back(
            q, k, v, tuple(learned), d_out, lse, d_row, ctx.number, out if alone else None
        )  # fmt: skip
        return (None, None, None, *ctx.scheme.backward(ctx.call, ctx.keys, back))
