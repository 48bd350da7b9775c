"""Gradients of one part of a merged result: of some queries and some keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.call import Call
from regard.core.partial import Partial, finite, wide
from regard.core.rule import Rule
from regard.core.score.matches import DotMatch
from regard.core.weigh import Softmax
from regard.run.dense_kernels import Shape, backward
from regard.run.fused import pattern
from regard.schemes.scheme import block_call, blocks_of, partial_over


def part_grads(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, real: Tensor | None,
    d_out: Tensor, lse: Tensor | None, d_row: Tensor | None, learned: tuple[Tensor, ...] = (),
    out: Tensor | None = None,
) -> list[Tensor | None]:  # fmt: skip
    """Return the gradients of q, k, v and learned parameters from one part of a merged result.

    Where a kernel supports the part, it needs only `lse` and `d_row`; otherwise the part is
    computed again, and `pulled_back`. `out` is the merged output, where it is on this rank and the
    lse has no gradient.
    """
    if not learned and lse is not None and d_row is not None:
        found = _kernel_grads(rule, q, k, v, i, j, real, d_out, lse, d_row, out)
        if found is not None:
            return found
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_(True) for x in (q, k, v))
        part = partial_over(rule, q, k, v, i, j, real)
        return pulled_back(part, d_out, lse, d_row, (q, k, v, *learned))


def _kernel_grads(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, real: Tensor | None,
    d_out: Tensor, lse: Tensor, d_row: Tensor, out: Tensor | None,
) -> list[Tensor | None] | None:  # fmt: skip
    """Return the gradients of q, k, v by a dense kernel's backward; None if it does not apply.

    The kernel computes p = exp(s - lse) and ds = p (d_out . v - d_out . out). Without `out`, one
    more channel replaces it, with ones in d_out, zeros in v and `d_row` in out: the last product is
    then d_row. In half precision that would be rounded, so the kernel is not used.
    """
    made = None if bool(lse.isnan().any()) else kernel_blocks(rule, q, k, v, i, j, real)
    if made is None:
        return None
    scale = scale_of_dot(rule, q.shape[3])
    grads = tuple(torch.zeros_like(x) for x in (q, k, v))
    d_out = d_out.to(q.dtype)
    if out is None:
        v, out = pad(v, (0, 1)), torch.cat((torch.zeros_like(d_out), d_row[..., None]), -1)
        d_out = pad(d_out, (0, 1), value=1.0)
    for row, col, call in made:
        if call is not None:
            found = backward(
                d_out[:, :, row], None, call.q, call.k, v[:, :, col], out[:, :, row],
                lse[:, :, row], Shape(scale, pattern(call) == "causal"),
            )  # fmt: skip
            for whole, some, part in zip(grads, (row, col, col), found, strict=True):
                whole[:, :, some] += part[..., : whole.shape[3]]
    return list(grads)


def kernel_blocks(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, real: Tensor | None
) -> list[tuple[slice, slice, Call | None]] | None:
    """Cut a part into blocks that dense kernels support: (rows, columns, call), None where empty.

    Returns None if one of them has a mask, or the rule needs more than a kernel does.
    """
    plain = type(rule.weigh) is Softmax and isinstance(rule.score.match, DotMatch)
    if not plain or rule.score.steps or real is not None or wide(q.dtype) != q.dtype:
        return None
    if scale_of_dot(rule, q.shape[3]) <= 0 or not len(i) or not len(j):
        return None
    made = []
    for row, cols in blocks_of(rule, i, j):
        for col in cols:
            own = q[:, :, row], k[:, :, col], v[:, :, col]
            call = block_call(rule, *own, i[row], j[col], None)
            if call is not None and pattern(call) is None:
                return None
            made.append((row, col, call))
    return made


def scale_of_dot(rule: Rule, d: int) -> float:
    """Return the scale of products: 1 / sqrt(d) unless the rule sets one.

    >>> scale_of_dot(Rule(), 16)
    0.25
    """
    match = rule.score.match
    assert isinstance(match, DotMatch)
    return d**-0.5 if match.scale is None else float(match.scale)


def pulled_back(
    part: Partial, d_out: Tensor, lse: Tensor | None, d_row: Tensor | None,
    inputs: tuple[Tensor, ...],
) -> list[Tensor | None]:  # fmt: skip
    """Return the gradients of inputs from one part of a merged result.

    The merge is out = sum_s exp(lse_s - lse) out_s, so with w = exp(lse_s - lse)

        d out_s = w d_out,   d lse_s = w (d_out . out_s - d_row),   d_row = d_out . out - d_lse

    which needs from the other parts only `lse` and `d_row` [b, h, n].
    """
    if part.out.grad_fn is None:
        return [None] * len(inputs)
    d_out = d_out.to(part.out.dtype)
    if part.lse is None or lse is None:
        return list(torch.autograd.grad(part.out, inputs, d_out, allow_unused=True))
    assert d_row is not None
    broken = lse.isnan()  # a query that attends to NaN has no gradient
    share = torch.exp(part.lse.detach() - finite(lse)).masked_fill(broken, 0.0)
    own = part.out.detach().masked_fill(broken[..., None], 0.0)
    d_lse = share * ((d_out * own).sum(-1) - d_row.masked_fill(broken, 0.0))
    outputs, grads = [part.out], [share[..., None] * d_out]
    if part.lse.grad_fn is not None:
        outputs.append(part.lse)
        grads.append(d_lse)
    return list(torch.autograd.grad(outputs, inputs, grads, allow_unused=True))
