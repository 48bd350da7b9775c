"""What surrounds a call and must not reach into it: autocast, hooks of autograd, masked keys.

**Autocast** ends at the door. An executor computes in the dtype of its inputs, as it does without;
inputs of mixed dtypes, which projections under autocast give, are brought to autocast's dtype.

**Planning** records nothing: checkpoints count what the forward saves, and a call that is planned
once must save as much as one that is not.

**Masked keys** contribute exactly nothing, to outputs, log-sum-exps and gradients, whatever they
hold: a NaN or an infinity in a key or value that a query may not attend to does not reach it. A
query that may attend to one gives NaN, and has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from regard.core.autocast import has_autocast, without_autocast
from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.partial import Partial
from regard.core.readable import can_be_read
from regard.core.score.base import At, keeping
from regard.core.score.biases import PlaceStep
from regard.core.support.bands import Causal
from regard.core.support.base import Everything

# Pairs asked about at a time, where some keys are not finite.
PAIRS = 1 << 24


def one_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert q, k and v of mixed dtypes to that of autocast, where it is on.

    >>> q, k = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     [x.dtype for x in one_dtype(q, k, k)]
    [torch.bfloat16, torch.bfloat16, torch.bfloat16]
    """
    given, dtype = (q, k, v), getattr(q, "dtype", None)
    alike = dtype == getattr(k, "dtype", None) and dtype == getattr(v, "dtype", None)
    if alike or not isinstance(q, Tensor):
        return given
    kind = q.device.type
    if not has_autocast(q.device):
        return given
    dtype, low = torch.get_autocast_dtype(kind), (torch.float32, torch.float16, torch.bfloat16)
    if any(getattr(x, "dtype", None) not in low for x in given):
        return given
    return q.to(dtype), k.to(dtype), v.to(dtype)


def unrecorded() -> AbstractContextManager[Any]:
    """Return a context in which what autograd saves is hidden from hooks that count it."""
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_itself, _itself)


def _itself(x: Any) -> Any:
    return x


def contained(call: Call, run: Callable[[Call], Partial]) -> Partial:
    """Run a call so that neither autocast nor the contents of masked keys reach into it.

    >>> from regard.core.rule import Rule
    >>> from regard.run.plan import EXECUTORS
    >>> q, bad = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    >>> bad[:, :, 1] = torch.nan
    >>> EXECUTORS["reference"].run(Call.of(q, bad, bad, Rule(Causal()))).out.isnan().all(-1)[0, 0]
    tensor([False,  True])
    """
    if has_autocast(call.q.device):
        with without_autocast(call.q.device):
            return contained(call, run)
    bad = broken_keys(call)
    if bad is None:
        return run(call)
    out, lse = run(_without(call, bad))
    rows = attends_to(call, bad)
    out = out.masked_fill(rows[..., None], torch.nan)
    return Partial(out, None if lse is None else lse.masked_fill(rows, torch.nan))


def contained_out(call: Call, run: Callable[[Call], Tensor]) -> Tensor:
    """Do the same for a call of which only the output is wanted."""
    return contained(call, lambda own: Partial(run(own), None)).out


def broken_keys(call: Call) -> Tensor | None:
    """Find keys [b, g, m] that hold a NaN or an infinity, in a call that masks some pair.

    A sum over all entries tells whether there are any: it is what the promise costs. Nothing is
    looked at where nothing may be masked, under `vmap`, on `meta`, and while a CUDA graph is being
    captured, which no look can be part of.
    """
    if not masks_something(call):
        return None
    k, v = call.k.detach(), call.v.detach()
    if not can_be_read(k):
        return None
    some = None
    if call.n == 1 and not _removes(call):  # one row of pairs is less to look at than every key
        masked = ~call.allowed(call.at()).flatten(0, -2).all(0)
        some = masked.nonzero().flatten()
        k, v = k.index_select(2, some), v.index_select(2, some)
    if isfinite((k.sum() + v.sum()).item()):
        return None
    bad = ~(k.isfinite().all(-1) & v.isfinite().all(-1))
    if not bool(bad.any()):
        return None
    if some is None:
        return bad
    return bad.new_zeros(*bad.shape[:2], call.m).index_copy(2, some, bad)


def masks_something(call: Call) -> bool:
    """Return whether some pair of a call may be masked."""
    support = call.rule.support
    if not call.placed and not _removes(call):
        if isinstance(support, Everything):
            return False
        if call.m == 0 or call.n == 0:
            return False
        if isinstance(support, Causal) and call.q_positions is None:
            return call.rule.offset < call.m - 1
    return call.m > 0 and call.n > 0


def _removes(call: Call) -> bool:
    """Return whether a step of the score may remove pairs."""
    steps = call.rule.score.steps
    return bool(steps) and any(s.may_remove for s in steps)


def _without(call: Call, bad: Tensor) -> Call:
    """Replace with zeros the keys that are not finite, which then have no gradient."""
    gone = bad[..., None]
    return call.replace(k=call.k.masked_fill(gone, 0.0), v=call.v.masked_fill(gone, 0.0))


def attends_to(call: Call, keys: Tensor) -> Tensor:
    """Return which queries [b, h, n] may attend to at least one of some keys [b, g, m]."""
    found = torch.zeros(call.b, call.h, call.n, dtype=torch.bool, device=call.q.device)
    some = keys.flatten(0, 1).any(0).nonzero().flatten()
    for cols in some.split(max(1, PAIRS // max(1, found.numel()))):
        at = call.at(cols=cols)
        pairs = call.allowed(at) & expand_heads(keys[..., cols], call.h)[:, :, None]
        found |= (pairs & ~_removed(call, at)).any(-1)
    return found


def _removed(call: Call, at: At) -> Tensor:
    """Return which pairs a bias of -inf removes; steps that ask for q and k remove none."""
    scores = torch.zeros((), device=call.q.device, dtype=call.q.dtype)
    scores = scores.expand(call.b, call.h, call.n, at.col.shape[-1])
    with torch.no_grad():
        for step in call.rule.score.steps:
            if isinstance(step, PlaceStep):
                scores = keeping(step.to(call.q.device).change)(scores, at)
    return scores == -torch.inf


__all__ = ["contained", "contained_out", "one_dtype", "unrecorded", "without_autocast"]
