"""The runner: the one way in which anything attends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.core.autocast import has_autocast
from regard.core.call import Call
from regard.core.errors import RegardError, RuleError, fail, nearest
from regard.core.keys import Dense
from regard.core.partial import Partial, finite
from regard.core.result import Counted, Result
from regard.core.survey import WANTS, Survey
from regard.run.counting import COUNT, Ran, counted
from regard.run.isolation import without_autocast
from regard.run.plan import densified, executor_for, simplified

# What may be wanted of a call, beside the statistics of a survey.
PLAIN = ("out", "lse", "part", "weights")
OUT = ("out",)
# Bytes that a matrix of weights may take.
LIMIT = 64 * 2**20


class TooLargeError(RegardError):
    """The matrix of weights would take more memory than it may."""


class _Wanted(NamedTuple):
    out: bool
    lse: bool
    part: bool
    weights: bool
    survey: tuple[str, ...]


_known: dict[tuple[str, ...], _Wanted] = {}


def run(
    call: Call, want: Sequence[str] = OUT, executor: str | None = None, **survey: Any
) -> Result:
    """Run a call: everything that attends does it here, once, by an executor that was planned.

    `want` names what is needed: "out", "lse", "weights" (a matrix: tiny inputs only), and the
    statistics of `regard.survey`, whose settings are further arguments; statistics alone cost no
    output. "part" leaves sinks out, so
    that results over disjoint keys merge. `executor` forces one by name.

    >>> q = torch.randn(1, 4, 8, 16)
    >>> result = run(Call.of(q, q, q), ("lse", "weights", "entropy"))
    >>> result.weights.shape, result.survey.entropy.shape, result.executor
    (torch.Size([1, 4, 8, 8]), torch.Size([1, 4, 8]), 'fused')
    """
    if torch._C._is_any_autocast_enabled() and has_autocast(call.q.device):  # it ends here
        with without_autocast(call.q.device):
            return run(call, want, executor, **survey)
    want = want if type(want) is tuple else (want,) if isinstance(want, str) else tuple(want)
    wanted = _known.get(want) or _read(want)
    if not wanted.out:
        return surveyed(call, wanted.survey, survey)
    count = COUNT
    pairs, flops, moved = count.pairs, count.flops, count.bytes
    depth = count.depth
    # Twice, so that an interruption of the one leaves the other.
    try:
        try:
            count.depth = depth + 1
            sinks = not wanted.part and not call.rule.plain and call.rule.weigh.has_sink
            lse_wanted = wanted.lse or wanted.part
            given, call = call, call if type(call.keys) is Dense else simplified(call)
            found, needs_dense = executor_for(
                call, executor, lse=lse_wanted, weights=wanted.weights
            )
            used = densified(call) if needs_dense else call
            lse = weights = report = None
            # The reference returns weights too, but a look does not choose another executor.
            if wanted.weights and (found.weighs or executor == "reference"):
                need_room(call)
                (out, lse), weights = found.weighed(used)
            elif sinks or (lse_wanted and not call.dropout):
                out, lse = found.run(used)
            else:
                out = found.out(used)
            # What it takes to look is counted, but not as the cost of attention.
            # Made without a frame of Python, which decoding would wait for.
            cost = tuple.__new__(
                Counted, (count.pairs - pairs, count.flops - flops, count.bytes - moved)
            )
            if wanted.weights and weights is None:
                need_room(call)
                weights, lse = _weights_of(used, lse)
            if sinks:
                out, lse, weights = _sunk(call, out, lse, weights)
            if wanted.survey:
                report = _survey(used, wanted.survey, survey)
        finally:
            count.depth = depth
    finally:
        count.depth = depth
    result = tuple.__new__(
        Result, (out, lse if lse_wanted else None, weights, report, cost, found.name)
    )
    if count.records and not count.depth:
        _record(given, result)
    return result


def _survey(call: Call, want: tuple[str, ...], settings: dict[str, Any]) -> Survey:
    from regard.run.survey import survey_call  # its public function runs calls

    return survey_call(call, want, **settings)


def surveyed(call: Call, want: tuple[str, ...], settings: dict[str, Any]) -> Result:
    """Survey a call of which no output is wanted: `out` is None."""
    before, depth = counted(), COUNT.depth
    try:
        try:
            COUNT.depth = depth + 1
            report = _survey(densified(simplified(call)), want, settings)
        finally:
            COUNT.depth = depth
    finally:
        COUNT.depth = depth
    cost = counted().less(before)
    result = Result(None, None, None, report, cost, "survey")  # type: ignore[arg-type]
    if COUNT.records and not COUNT.depth:
        _record(call, result)
    return result


def otherwise(call: Call, name: str, compute: Callable[[], Tensor | None]) -> Result | None:
    """Return a call computed in a way of its own, as one: counted and recorded under a name.

    What it runs inside is a part of it. None where `compute` leaves the call to others.

    >>> q = torch.randn(1, 2, 3, 8)
    >>> otherwise(Call.of(q, q, q), "halves", lambda: run(Call.of(q, q, q)).out / 2).executor
    'halves'
    """
    before, depth = counted(), COUNT.depth
    try:
        try:
            COUNT.depth = depth + 1
            out = compute()
        finally:
            COUNT.depth = depth
    finally:
        COUNT.depth = depth
    if out is None:
        return None
    result = Result(out, cost=counted().less(before), executor=name)
    if COUNT.records and not COUNT.depth:
        _record(call, result)
    return result


def _record(call: Call, result: Result) -> None:
    for record in COUNT.records:
        record.append(Ran(call, result))


def _read(want: tuple[str, ...]) -> _Wanted:
    """Understand what is wanted."""
    for name in want:
        if name not in PLAIN and name not in WANTS:
            some = f"one of {', '.join((*PLAIN, *WANTS))}"
            fail(RuleError, "want", repr(name), some, nearest(name, (*PLAIN, *WANTS), some))
    survey = tuple(x for x in want if x not in PLAIN)
    if survey and "lse" in want:
        survey = ("lse", *survey)
    out = not survey or not set(want).isdisjoint(PLAIN)
    made = _Wanted(out, "lse" in want, "part" in want, "weights" in want, survey)
    _known[want] = made
    return made


def need_room(call: Call, asked_by: str = "want", limit: int = LIMIT) -> None:
    """Raise unless the matrix of weights [b, h, n, m] is small enough."""
    (b, h, n, _), m = call.q.shape, call.m
    size = 4 * b * h * n * m
    if size > limit:
        fail(
            TooLargeError, asked_by,
            f"weights of [{b}, {h}, {n}, {m}], {size / 2**20:.0f} MiB a site",
            f"at most {limit / 2**20:.0f} MiB",
            "pass fewer tokens, or want survey statistics, which take memory linear in them",
        )  # fmt: skip


def _weights_of(call: Call, lse: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Write the weights out beside an executor that does not return them."""
    from regard.run.reference import weight_matrix  # an executor

    weights, own = weight_matrix(call)
    return weights, own if lse is None else lse


def _sunk(
    call: Call, out: Tensor, lse: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Let the sink of a rule take its share: the one place where that is done."""
    sunk = call.rule.weigh.apply_sink(Partial(out, lse))
    if weights is not None and lse is not None and sunk.lse is not None:
        weights = weights * torch.exp(lse - finite(sunk.lse))[..., None]
    return sunk.out, sunk.lse, weights


def partial_of(call: Call, executor: str | None = None) -> Partial:
    """Run a call as a part of more: (out, lse) without sinks, to be merged.

    >>> q = torch.randn(1, 2, 3, 8)
    >>> partial_of(Call.of(q, q, q)).lse.shape
    torch.Size([1, 2, 3])
    """
    result = run(call, ("part",), executor)
    return Partial(result.out, result.lse)


__all__ = ["LIMIT", "TooLargeError", "need_room", "otherwise", "partial_of", "run", "surveyed"]
