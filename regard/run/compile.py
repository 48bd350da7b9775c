"""Attention inside `torch.compile` and `torch.export`: one opaque operator for any rule.

The compiler sees an operator from q, k, v and the rule's tensors to out and lse; at run time the
executor is planned as always. Its gradient runs the call once more with autograd on, so that
biases and tables learn as they do outside.

The graph names its rule by what the rule says, as JSON whose tensors are inputs of the operator. So
a graph that is saved and loaded in another process runs the same rule. A rule that holds a function
is known to its own process alone, and its graph says so when it is loaded in another.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from regard.core.autocast import without_autocast
from regard.core.call import Call
from regard.core.errors import ExecutorError, RuleError, fail
from regard.core.partial import Partial, wide
from regard.core.rule import Rule
from regard.core.value import types
from regard.core.value_text import built, plain
from regard.run.chunked import reached_learned
from regard.run.plan import EXECUTORS
from regard.run.runner import run

# Names of this process, with the number below which rules are known by that name: its own, and
# those of processes that it was forked from.
_homes: dict[str, float] = {}


def _settle() -> None:
    """Take a new name, at the start and after a fork."""
    known = Rule().number
    for name in _homes:
        _homes[name] = min(_homes[name], known)
    _homes[uuid.uuid4().hex] = math.inf


_settle()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_settle)


def written(rule: Rule) -> str:
    """Write what identifies a rule in a graph: its JSON, with `{"held": x}` for its x-th tensor.

    >>> from regard.core.support import Causal
    >>> read(written(Rule(Causal())), []) == Rule(Causal())
    True
    """
    if rule.functions():
        # Nothing may be raised while a graph is traced: the operator says it when it runs.
        unseen = torch.is_grad_enabled() and bool(reached_learned(rule))
        home = list(_homes)[-1]
        return json.dumps({"number": rule.number, "process": home, "unseen": unseen})
    places = iter(range(len(rule.tensors())))
    return json.dumps(plain(rule, lambda _: {"held": next(places)}))


def read(text: str, held: Sequence[Tensor]) -> Rule:
    """Return the rule of a text that `written` made, with the tensors it holds."""
    number = _number_in(text)
    if number is not None:
        rule = Rule.numbered(number)
        return rule.with_tensors(held) if held else rule
    found = _read.get(text)
    if found is None:
        made: Rule = built(json.loads(text), types(), held=held)
        # Checked once, with the first tensors; kept without them.
        found = made.with_tensors([x.to("meta") for x in held])
        _read[text] = found
        if len(_read) > _KEPT:
            _read.popitem(last=False)
    return found.with_tensors(held) if held else found


_read: OrderedDict[str, Rule] = OrderedDict()
_KEPT = 1024


@lru_cache(maxsize=_KEPT)
def _number_in(text: str) -> int | None:
    """Return the number of a rule of this process, None for one that is written out."""
    said = json.loads(text)
    if "number" not in said:
        return None
    _need_home(said)
    if said["unseen"]:
        fail(
            RuleError,
            "rule",
            "a function that reaches tensors which are being learned",
            "in compiled code only learned tensors that parts of the rule hold",
            "write a Step whose fields are these tensors, or compile around this attention",
        )
    return int(said["number"])


def _need_home(said: dict[str, Any]) -> None:
    """Raise unless a rule that is only named was made in this process."""
    if not said["number"] < _homes.get(said["process"], 0):
        fail(
            ExecutorError,
            "rule",
            "a graph of another process whose rule holds a function",
            "a rule that can be written down",
            "use a Support or Step of its own class in place of the function, and export again",
        )


@lru_cache(maxsize=_KEPT)
def _sums(text: str) -> bool:
    """Return whether the weigh of a rule only sums."""
    said = json.loads(text)
    if "number" in said:
        _need_home(said)
        return Rule.numbered(said["number"]).weigh.sums
    return bool(types()[said["weigh"]["type"]].sums)  # type: ignore[attr-defined]


def _run(
    q: Tensor, k: Tensor, v: Tensor, held: Sequence[Tensor], rule: str, executor: str
) -> Partial:
    result = run(Call.of(q, k, v, read(rule, held)), ("lse",), executor or None)
    return Partial(result.out, result.lse)


@torch.library.custom_op("regard::attend", mutates_args=())
def opaque_attend(
    q: Tensor, k: Tensor, v: Tensor, held: list[Tensor], rule: str, executor: str
) -> tuple[Tensor, Tensor]:
    """Run a rule on q, k, v with the tensors it holds; (out, lse), lse empty for sums."""
    out, lse = _run(q, k, v, held, rule, executor)
    return out.contiguous(), q.new_empty(0) if lse is None else lse.contiguous()


@opaque_attend.register_fake
def _shapes(
    q: Tensor, k: Tensor, v: Tensor, held: list[Tensor], rule: str, executor: str
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[3])
    if _sums(rule):
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
    rule: str,
    executor: str,
) -> list[Tensor]:
    """Return the gradients of q, k, v and of the rule's floating tensors."""
    with torch.enable_grad(), _autograd_again(), without_autocast(q.device):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        own = [x.detach().requires_grad_(x.is_floating_point()) for x in held]
        out, lse = _run(leaves[0], leaves[1], leaves[2], own, rule, executor)
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
    rule: str,
    executor: str,
) -> list[Tensor]:
    asked = [q, k, v, *(x for x in held if x.is_floating_point())]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in asked]


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, held, rule, executor = inputs
    ctx.save_for_backward(q, k, v, *held)
    ctx.rule, ctx.executor = rule, executor


def _pull(ctx, d_out: Tensor, d_lse: Tensor):  # type: ignore[no-untyped-def]
    q, k, v, *held = ctx.saved_tensors
    grads = opaque_backward(d_out, d_lse, q, k, v, held, ctx.rule, ctx.executor)
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
    rule = Rule.numbered(number)
    executor = list(EXECUTORS)[forced] if forced >= 0 else ""
    out: Tensor = opaque_attend(q, k, v, held, written(rule), executor)[0]
    return out
