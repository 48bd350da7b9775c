"""Attention inside `torch.compile`: one opaque operator for whatever executor runs the rule.

The compiler sees an operator from q, k, v and the rule's tensors to out and lse; at run time the
executor is planned as always. Its gradient runs the call once more with autograd on, so that
biases and tables learn as they do outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.partial import Partial, wide
from regard.core.rule import Rule
from regard.run.plan import EXECUTORS
from regard.run.runner import run


def _run(
    q: Tensor, k: Tensor, v: Tensor, held: Sequence[Tensor], number: int, forced: int
) -> Partial:
    rule = Rule.numbered(number)
    executor = list(EXECUTORS)[forced] if forced >= 0 else None
    call = Call.of(q, k, v, rule.with_tensors(held) if held else rule)
    result = run(call, ("lse",), executor)
    return Partial(result.out, result.lse)


@torch.library.custom_op("regard::attend", mutates_args=())
def opaque_attend(
    q: Tensor, k: Tensor, v: Tensor, held: list[Tensor], number: int, forced: int
) -> tuple[Tensor, Tensor]:
    """Run rule `number` on q, k, v with the tensors it holds; (out, lse), lse empty for sums."""
    out, lse = _run(q, k, v, held, number, forced)
    return out.contiguous(), q.new_empty(0) if lse is None else lse.contiguous()


@opaque_attend.register_fake
def _shapes(
    q: Tensor, k: Tensor, v: Tensor, held: list[Tensor], number: int, forced: int
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[3])
    if Rule.numbered(number).weigh.sums:
        return out, q.new_empty(0)
    return out, q.new_empty(q.shape[:3], dtype=wide(q.dtype))


@torch.library.custom_op("regard::attend_backward", mutates_args=())
def opaque_backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    held: list[Tensor],
    number: int,
    forced: int,
) -> list[Tensor]:
    """Give the gradients of q, k, v and of the rule's floating tensors."""
    with torch.enable_grad(), _autograd_again():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        own = [x.detach().requires_grad_(x.is_floating_point()) for x in held]
        out, lse = _run(leaves[0], leaves[1], leaves[2], own, number, forced)
        asked = leaves + [x for x in own if x.requires_grad]
        outs, pulls = [out], [d_out]
        if lse is not None:
            outs, pulls = [out, lse], [d_out, d_lse]
        grads = torch.autograd.grad(outs, asked, pulls, allow_unused=True)
    return [
        torch.zeros_like(x) if g is None else g.contiguous()
        for g, x in zip(grads, asked, strict=True)
    ]


def _autograd_again() -> Any:
    """Let operators record gradients inside an operator, where PyTorch switches that off."""
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradCPU", "AutogradCUDA", "ADInplaceOrView"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, name))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude)


@opaque_backward.register_fake
def _grad_shapes(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    held: list[Tensor],
    number: int,
    forced: int,
) -> list[Tensor]:
    asked = [q, k, v, *(x for x in held if x.is_floating_point())]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in asked]


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, held, number, forced = inputs
    ctx.save_for_backward(q, k, v, *held)
    ctx.number, ctx.forced = number, forced


def _pull(ctx, d_out: Tensor, d_lse: Tensor):  # type: ignore[no-untyped-def]
    q, k, v, *held = ctx.saved_tensors
    grads = opaque_backward(d_out, d_lse, q, k, v, held, ctx.number, ctx.forced)
    later = iter(grads[3:])
    return (*grads[:3], [next(later) if x.is_floating_point() else None for x in held], None, None)


opaque_attend.register_autograd(_pull, setup_context=_keep)


@torch._dynamo.nonstrict_trace
def attend_compiled(
    q: Tensor, k: Tensor, v: Tensor, held: list[Tensor], number: int, forced: int
) -> Tensor:
    """Attend in code that is being compiled, by the number of the rule and the tensors it holds.

    `forced` is the place of the executor in EXECUTORS, -1 for none: a graph carries no None.
    """
    return opaque_attend(q, k, v, held, number, forced)[0]
