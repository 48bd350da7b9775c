"""Which executor runs a call, and why: the cheapest that can, or the one that was asked for."""

from __future__ import annotations

import importlib
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ExecutorError, fail, nearest
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
        "grouped": ("regard.run.grouped", "Grouped"),
        "chunked": ("regard.run.chunked", "Chunked"),
        "reference": ("regard.run.reference", "Reference"),
    }

    def __init__(self) -> None:
        self._made: dict[str, Executor] = {}

    def __getitem__(self, name: str) -> Executor:
        if name not in self._made:
            module, kind = self.places[name]
            self._made[name] = getattr(importlib.import_module(module), kind)()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


EXECUTORS = Executors()


@dataclass(frozen=True)
class Plan:
    """What will run, why, at what cost, and what was ruled out and why.

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

    def __str__(self) -> str:
        lines = [
            f"{self.executor}: {self.why}",
            f"  work     {_said(self.cost.flops, 'FLOP')}, {_said(self.cost.bytes, 'B')} moved, "
            f"{_said(self.cost.held, 'B')} held",
            f"  against  {_said(self.dense_flops, 'FLOP')} for every pair",
        ]
        for name, cost in self.considered.items():
            if name != self.executor:
                times = cost.weight / max(self.cost.weight, 1.0)
                note = f" ({self.asked_only[name]})" if name in self.asked_only else ""
                lines.append(f"  could    {name}: about {times:.1f}x the work{note}")
        lines += [f"  cannot   {name}: {why}" for name, why in self.ruled_out.items()]
        return "\n".join(lines)


def _said(x: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if x < 1000:
            return f"{x:.3g} {prefix}{unit}"
        x /= 1000
    return f"{x:.3g} P{unit}"


def make_plan(call: Call, forced: str | None = None, *, lse: bool = False) -> Plan:
    """Check a call, ask every executor, and choose the cheapest that can.

    `lse` says that the log-sum-exp is wanted, which PyTorch's own call does not return.
    """
    call.checked()
    if forced is not None and forced not in EXECUTORS:
        some = f"one of {', '.join(EXECUTORS)}"
        hint = nearest(forced, EXECUTORS, f"pass {some}")
        fail(ExecutorError, "executor", repr(forced), some, hint)
    considered: dict[str, Cost] = {}
    ruled_out: dict[str, str] = {}
    notes: dict[str, str] = {}
    around = transforms_around()
    if around and (lse or call.rule.weigh.closes):
        around = Transforms.ANY
    for name in EXECUTORS:
        executor = EXECUTORS[name]
        answer = executor.can(call)
        if answer and executor.transforms < around:
            answer = No(f"under {TRANSFORMS[around]}, of which its kernels know nothing")
        if isinstance(answer, No):
            ruled_out[name] = answer.reason
        else:
            considered[name] = EXECUTORS[name].cost(call)
            notes[name] = answer.note
    if forced is not None and forced in ruled_out:
        fail(
            ExecutorError,
            "executor",
            f"{forced!r}, which cannot: {ruled_out[forced]}",
            f"one that can: {', '.join(considered)}",
            "leave `executor` out, or name one of these",
        )
    ready = {x: c for x, c in considered.items() if not EXECUTORS[x].waits(call)}
    name = forced or min(ready or considered, key=lambda x: considered[x].weight)
    dense = 2.0 * call.b * call.h * call.n * call.m * (call.d + call.e)
    why = "asked for" if forced else "the least work of those that can"
    why += f" ({notes[name]})" if notes[name] else ""
    asked_only = {x: EXECUTORS[x].waits(call) for x in considered if x not in ready}
    return Plan(name, why, considered[name], dense, considered, ruled_out, asked_only)


_chosen: OrderedDict[Hashable, Executor] = OrderedDict()
_KEPT = 4096


def chosen(call: Call, forced: str | None = None, *, lse: bool = False) -> Executor:
    """Give the executor of a call; calls of one kind are planned and checked once."""
    try:
        key = _kind(call, forced, lse)
    except AttributeError:  # something is no tensor; a look at each call would cost all calls
        call.checked()
        raise
    if around := transforms_around():
        key = key, around
    found = _chosen.get(key)
    if found is not None:
        return found
    plan = make_plan(call, forced, lse=lse)
    _tell_once(call, plan, forced)
    found = _chosen[key] = EXECUTORS[plan.executor]
    if len(_chosen) > _KEPT:
        _chosen.popitem(last=False)
    return found


def _kind(call: Call, forced: str | None, lse: bool) -> Hashable:
    """What a plan depends on."""
    rule = call.rule
    if call.n == 1 and not call.placed and rule.placeless and not rule.tensors():
        return _step_kind(call, forced, lse)
    tensors = (call.q, call.k, call.v, call.q_positions, call.k_positions)
    kinds: Iterable[Hashable] = map(_tensor_kind, tensors)
    said = rule.signature
    if call.n == 1 and not rule.tensors():
        # A text that grows by a token must not be planned anew at each: lengths come in steps.
        kinds = (_decoding_kind(t, call.m) for t in tensors)
        if rule.placeless:
            said = rule.score.signature, rule.weigh.signature
    return (said, *kinds, call.needs_grad, call.dropout, forced, lse)


def _step_kind(call: Call, forced: str | None, lse: bool) -> Hashable:
    """The kind of a single query under a rule that is blind to place: asked at every step."""
    q, k, v = call.q, call.k, call.v
    b, g, m, d = k.shape
    return (
        call.rule.score.signature, call.rule.weigh.signature, q.shape, b, g, -(-m // 128), d,
        v.shape[:2], v.shape[2] == m, v.shape[3], q.dtype, k.dtype, v.dtype, q.device, k.device,
        v.device, call.needs_grad, call.dropout, forced, lse,
    )  # fmt: skip


def _tensor_kind(t: Tensor | None) -> Hashable:
    return None if t is None else (t.shape, t.dtype, t.device)


def _decoding_kind(t: Tensor | None, m: int) -> Hashable:
    """The kind of a tensor, with the number of keys in steps of 128."""
    if t is None:
        return None
    shape: list[Hashable] = list(t.shape)
    axis = 2 if t.dim() == 4 else -1
    if shape[axis] == m:
        shape[axis] = "keys", -(-m // 128)
    return tuple(shape), t.dtype, t.device


def _tell_once(call: Call, plan: Plan, forced: str | None) -> None:
    """Warn where the choice costs far more than the pairs that meet would."""
    if forced is not None or plan.executor in ("fused", "folded", "flex", "triton", "grouped"):
        return
    least = min((c.weight for n, c in plan.considered.items() if n != plan.executor), default=0.0)
    fused = EXECUTORS["fused"].cost(call).weight if not call.placed else least
    times = plan.cost.weight / max(fused, 1.0)
    if times > DEAR and call.n * call.m > 1 << 20:
        warnings.warn(
            f"regard runs {call.rule} on the '{plan.executor}' executor, at about {times:.0f}x the "
            f"work of a fused one, which cannot: {plan.ruled_out.get('fused', '')}. "
            "print(regard.plan(...)) tells more; name the executor to silence this.",
            stacklevel=4,
        )
