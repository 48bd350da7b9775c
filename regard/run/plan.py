"""Which executor runs a call, and why: the cheapest that can, or the one that was asked for."""

from __future__ import annotations

import importlib
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ExecutorError, fail, nearest
from regard.core.html_table import html_table
from regard.core.keys import STEP, Dense
from regard.run.executor import Cost, Executor, No
from regard.run.transforms import Transforms, transforms_around

# A fallback that costs more than this many times the work of the pairs that meet is told once.
DEAR = 4.0
TRANSFORMS = {
    Transforms.FIRST: "a transform of torch.func",
    Transforms.ANY: "forward-mode or second derivatives of torch.func",
}


class Executors(Mapping[str, Executor]):
    """The executors by name, each imported when first asked for."""

    places: ClassVar[dict[str, tuple[str, str]]] = {
        "fused": ("regard.run.fused", "Fused"),
        "folded": ("regard.run.folded", "Folded"),
        "flex": ("regard.run.flex", "Flex"),
        "triton": ("regard.run.triton", "TritonExecutor"),
        "decode": ("regard.run.decoding", "Decode"),
        "selected": ("regard.run.selected", "Selected"),
        "paged": ("regard.run.paged", "PagedDecode"),
        "packed": ("regard.run.packed", "PackedDecode"),
        "ragged": ("regard.run.ragged", "RaggedHeads"),
        "grouped": ("regard.run.grouped", "Grouped"),
        "chunked": ("regard.run.chunked", "Chunked"),
        "reference": ("regard.run.reference", "Reference"),
    }

    def __init__(self) -> None:
        self._made: dict[str, Executor] = {}
        # Those of higher floors, which read keys of one form: form -> name -> where it is.
        self._added: dict[str, dict[str, tuple[str, str]]] = {}

    def __getitem__(self, name: str) -> Executor:
        if name not in self._made:
            places = {**self.places, **{n: p for x in self._added.values() for n, p in x.items()}}
            module, kind = places[name]
            self._made[name] = getattr(importlib.import_module(module), kind)()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def add(self, form: str, name: str, module: str, kind: str) -> None:
        """Register an executor that reads keys of one form alone: `kind` in `module`."""
        self._added.setdefault(form, {})[name] = (module, kind)

    def among(self, form: str) -> tuple[str, ...]:
        """Return the names of those that may run a call over keys of a form."""
        return (*self.places, *self._added.get(form, {}))


EXECUTORS = Executors()


@dataclass(frozen=True)
class Plan:
    """What will run, why, at what cost, and what was ruled out and why.

    `made_dense` counts the bytes that are written because no executor reads the keys as they are
    stored; 0 where one does.

    >>> import regard
    >>> q = torch.randn(1, 2, 64, 8)
    >>> print(regard.plan(q, q, q, regard.Sigmoid()).ruled_out["fused"])
    weighs by Sigmoid(), not by softmax
    """

    executor: str
    why: str
    cost: Cost
    dense_flops: float
    considered: dict[str, Cost]
    ruled_out: dict[str, str]
    asked_only: dict[str, str]
    form: str = "dense"
    made_dense: int = 0

    def __str__(self) -> str:
        lines = [
            f"{self.executor}: {self.why}",
            f"  work     {_said(self.cost.flops, 'FLOP')}, {_said(self.cost.bytes, 'B')} moved, "
            f"{_said(self.cost.held, 'B')} held",
            f"  against  {_said(self.dense_flops, 'FLOP')} for every pair",
        ]
        if self.made_dense:
            lines.append(
                f"  dense    {self.form} keys are written out: {_said(self.made_dense, 'B')}"
            )
        for name, cost in self.considered.items():
            if name != self.executor:
                times = cost.weight / max(self.cost.weight, 1.0)
                note = f" ({self.asked_only[name]})" if name in self.asked_only else ""
                lines.append(f"  could    {name}: about {times:.1f}x the work{note}")
        for name, why in self.ruled_out.items():
            if self.form != "dense" or "dense" in EXECUTORS[name].reads:
                lines.append(f"  cannot   {name}: {why}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        first, *others = str(self).splitlines()
        rows = [[x.strip() for x in line.strip().split("  ", 1)] for line in others]
        return html_table(first, ["", ""], rows)


def _said(x: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if x < 1000:
            return f"{x:.3g} {prefix}{unit}"
        x /= 1000
    return f"{x:.3g} P{unit}"


def make_plan(
    call: Call,
    forced: str | None = None,
    *,
    lse: bool = False,
    weights: bool = False,
    all_asked: bool = True,
) -> Plan:
    """Check a call, ask every executor, and choose the cheapest that can.

    One that reads the keys as they are stored goes before all that need them dense: unless
    `all_asked`, these are not asked then, for asking makes keys dense. `lse` says that the
    log-sum-exp is wanted, which PyTorch's own call does not return. With `weights` those that do
    not return the weights beside the output pay for them.
    """
    call = simplified(call.checked())
    if forced is not None and forced not in EXECUTORS:
        some = f"one of {', '.join(EXECUTORS)}"
        hint = nearest(forced, EXECUTORS, f"pass {some}")
        fail(ExecutorError, "executor", repr(forced), some, hint)
    form, dense_bytes = call.keys.form, call.keys.dense_bytes
    considered: dict[str, Cost] = {}
    ruled_out: dict[str, str] = {}
    notes: dict[str, str] = {}
    needs_dense: set[str] = set()
    as_dense: Call | None = None
    around = transforms_around()
    if around and (lse or call.rule.weigh.has_sink):
        around = Transforms.ANY
    # Those that read the keys as they are come first.
    for name in sorted(EXECUTORS.among(form), key=lambda x: form not in EXECUTORS[x].reads):
        executor, asked = EXECUTORS[name], call
        if form not in executor.reads:
            if "dense" not in executor.reads:
                ruled_out[name] = f"reads {' and '.join(sorted(executor.reads))} keys, not {form}"
                continue
            if call.keys.collective:
                ruled_out[name] = f"reads keys of one device, not {form}"
                continue
            able = [x for x in considered if not EXECUTORS[x].avoid_reason(call)]
            native = forced in considered or bool(able and not forced)
            if native and not all_asked:
                continue
            as_dense = as_dense or densified(call)
            asked = as_dense
        answer = executor.can(asked)
        if answer and executor.transforms < around:
            answer = No(f"under {TRANSFORMS[around]}, of which its kernels know nothing")
        if isinstance(answer, No):
            ruled_out[name] = answer.reason
            continue
        cost, note = executor.cost(asked), answer.note
        if asked is not call:
            needs_dense.add(name)
            cost = replace(cost, bytes=cost.bytes + 2.0 * dense_bytes, held=cost.held + dense_bytes)
        if weights and not executor.weighs:
            cost = replace(cost, bytes=cost.bytes + Executor.cost(executor, asked).bytes)
        considered[name], notes[name] = cost, note
    if forced is not None and forced in ruled_out:
        fail(
            ExecutorError,
            "executor",
            f"{forced!r}, which cannot: {ruled_out[forced]}",
            f"one that can: {', '.join(considered)}",
            "leave `executor` out, or name one of these",
        )
    if not considered:
        refusals = [f"{x}: {why}" for x, why in ruled_out.items() if form in EXECUTORS[x].reads]
        fail(
            ExecutorError, "keys", f"{call.keys} and {call.rule}, which none can run: "
            + "; ".join(refusals),
            "a call that some executor can run", "change what the first of them names",
        )  # fmt: skip
    asked_only = {x: why for x in considered if (why := EXECUTORS[x].avoid_reason(call))}
    ready = [x for x in considered if x not in asked_only] or list(considered)
    best = [x for x in ready if x not in needs_dense] or ready
    name = forced or min(best, key=lambda x: considered[x].weight)
    dense = 2.0 * call.b * call.h * call.n * call.m * (call.d + call.e)
    why = "asked for" if forced else "the least work of those that can"
    if best is not ready and not forced and len(best) < len(ready):
        why = f"it reads {form} keys as they are stored"
    why += f" ({notes[name]})" if notes[name] else ""
    made_dense = dense_bytes if name in needs_dense else 0
    return Plan(
        name, why, considered[name], dense, considered, ruled_out, asked_only, form, made_dense
    )


def simplified(call: Call) -> Call:
    """Return the same call over keys of the simplest form that means the same to its rule."""
    if type(call.keys) is Dense:
        return call
    try:
        keys = call.keys.simplest(call.rule)
    except AttributeError:  # no keys; a look at each call would cost all calls
        call.checked()
        raise
    if call.q_positions is None and keys.q_positions is not None:
        return call.replace(keys=keys, q_positions=keys.q_positions)
    return call if keys is call.keys else call.replace(keys=keys)


def densified(call: Call) -> Call:
    """Return the same call over keys that are tensors."""
    if type(call.keys) is Dense:
        return call
    known = call.__dict__  # where `call.dense` would keep it, too
    if "dense" not in known:
        known["dense"] = call.keys.dense()
    return call.replace(keys=known["dense"])


# A kind of call -> its executor, and whether its keys are made dense first.
_chosen: OrderedDict[Hashable, tuple[Executor, bool]] = OrderedDict()
_KEPT = 4096
_functorch = torch._C._functorch


def executor_for(
    call: Call, forced: str | None = None, *, lse: bool = False, weights: bool = False
) -> tuple[Executor, bool]:
    """Return the executor of a call, and whether its keys must be made dense.

    Calls of one kind are planned and checked once. The layers of a model decode by one rule, and
    mostly the same shapes: a rule remembers the kind of its last step, which takes less to compare
    than to look up.
    """
    step = _step(call, forced, lse, weights)
    if step is not None:
        known = call.rule.__dict__.get("_step")
        if known is not None and known[0] == step:
            call.__dict__["placed"] = False
            return known[1]  # type: ignore[no-any-return]
    found = _looked_up(call, forced, lse, weights)
    if step is not None:
        call.rule.__dict__["_step"] = step, found
    return found


def _step(call: Call, forced: str | None, lse: bool, weights: bool) -> Hashable:
    """Return what a plan of a plain step knows; None for calls of any other kind.

    A plain step is a query of each head over all of its keys, as tensors, without a gradient.
    """
    rule, keys, q = call.rule, call.keys, call.q
    if type(keys) is not Dense or not rule.plain or torch.is_grad_enabled():
        return None
    k, v, at = keys.k, keys.v, keys.at
    try:
        if q.shape[2] != 1 or not (at is None or getattr(at, "full", False)):
            return None
        if _functorch.peek_interpreter_stack() is not None:
            return None
        now = call.q_positions
        return (
            q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device,
            None if now is None else _tensor_kind(now), call.dropout, forced, lse, weights,
        )  # fmt: skip
    except (AttributeError, IndexError):  # something is no tensor, as the check will say
        return None


def _looked_up(call: Call, forced: str | None, lse: bool, weights: bool) -> tuple[Executor, bool]:
    try:
        key: Hashable = (_kind(call), forced, lse, weights)
    except AttributeError:  # something is no tensor; a look at each call would cost all calls
        call.checked()
        raise
    if around := transforms_around():
        key = key, around
    found = _chosen.get(key)
    if found is not None:
        return found
    plan = make_plan(call, forced, lse=lse, weights=weights, all_asked=False)
    _tell_once(call, plan, forced)
    executor = EXECUTORS[plan.executor]
    found = _chosen[key] = executor, call.keys.form not in executor.reads
    if len(_chosen) > _KEPT:
        _chosen.popitem(last=False)
    return found


def _kind(call: Call) -> Hashable:
    """Everything that a plan depends on: shapes, types, devices, the rule, contents that matter."""
    rule, keys, q = call.rule, call.keys, call.q
    held, single = rule.tensors(), q.shape[2] == 1
    dense = type(keys) is Dense
    own: Any = keys
    if dense:  # asked at every step of decoding, so written out here
        at: Any = own.at
        full = at is None or (keys.full if isinstance(at, Tensor) else at.full)
        placed = at is not None or call.q_positions is not None
        placed = call.__dict__["placed"] = placed and not (rule.position_free and full)
    else:
        placed = keys.placed or call.q_positions is not None
        placed = call.__dict__["placed"] = placed and not (rule.position_free and keys.full)
    # A text that grows by a token must not be planned anew at each: then lengths come in steps.
    grows = single and not held and (rule.position_free or placed)
    if not dense:
        # Several queries may be all the past of few keys, and not of many.
        said: Hashable = keys.kind if single else (keys.kind, keys.m)
        if keys.form == "paged":
            said = said, _in_a_row(call.q_positions)
    elif grows:
        (b, g, m, d), v = own.k.shape, own.v
        said = (
            b, g, -(-m // STEP), d, v.shape[:2], v.shape[2] == m, v.shape[3], own.k.dtype, v.dtype,
            own.k.device, v.device, full,
        )  # fmt: skip
    else:
        said = (
            _tensor_kind(own.k), _tensor_kind(own.v),
            _tensor_kind(at) if isinstance(at, Tensor) else at is None, full,
        )  # fmt: skip
    means = rule.step_key if single and not held and rule.position_free else rule.signature
    contents = rule.score.contents() if held else None
    now = call.q_positions
    return (
        means, contents, q.shape, q.dtype, q.device, said,
        now if now is None else _tensor_kind(now), placed,
        torch.is_grad_enabled() and call.needs_grad, call.dropout,
    )  # fmt: skip


def _in_a_row(positions: Tensor | None) -> bool:
    """Whether the positions of the queries of each row are consecutive."""
    if positions is None or positions.shape[-1] == 1:
        return True
    return bool((positions.diff(dim=-1) == 1).all())


def _tensor_kind(t: Tensor | None) -> Hashable:
    return None if t is None else (t.shape, t.dtype, t.device)


def _tell_once(call: Call, plan: Plan, forced: str | None) -> None:
    """Warn where the choice costs far more than the pairs that may attend would."""
    if forced is not None or plan.executor not in ("chunked", "reference"):
        return
    least = min((c.weight for n, c in plan.considered.items() if n != plan.executor), default=0.0)
    fused = EXECUTORS["fused"].cost(densified(call)).weight if not call.placed else least
    times = plan.cost.weight / max(fused, 1.0)
    if times > DEAR and call.n * call.m > 1 << 20:
        warnings.warn(
            f"regard runs {call.rule} on the '{plan.executor}' executor, at about {times:.0f}x the "
            f"work of a fused one, which cannot: {plan.ruled_out.get('fused', '')}. "
            "print(regard.plan(...)) tells more; name the executor to silence this.",
            stacklevel=5,
        )
