"""A rule remembers the plan of its last plain step: it never serves a step of another kind."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch

from regard.core.call import Call
from regard.core.errors import RegardError
from regard.core.keys import Dense, Later
from regard.core.rule import Rule
from regard.run.plan import executor_for

B, H, G, M, D = 1, 4, 2, 9, 8


NONE: Mapping[str, Any] = MappingProxyType({})


class Case(NamedTuple):
    """What differs from a plain step."""

    keys: Mapping[str, Any] = NONE
    q: Mapping[str, Any] = NONE
    call: Mapping[str, Any] = NONE
    asked: Mapping[str, Any] = NONE
    within: Callable[[], AbstractContextManager[Any]] = torch.no_grad


def made(case: Case, rule: Rule) -> Call:
    """Build the call of a case."""
    sizes = {"b": B, "h": H, "g": G, "n": 1, "m": M, "d": D, "e": D, **case.q, **case.keys}
    more = {"dtype": case.q.get("dtype", torch.float32), "requires_grad": "learned" in case.q}
    q = torch.ones(sizes["b"], sizes["h"], sizes["n"], sizes["d"], **more)
    more["dtype"] = case.keys.get("dtype", more["dtype"])
    k, v = (torch.ones(sizes["b"], sizes["g"], sizes["m"], sizes[x], **more) for x in "de")
    return Call(q, Dense(k, v, case.keys.get("at")), rule, **case.call)


CASES = {
    "plain": Case(),
    "as many heads": Case(keys={"g": H}),
    "more keys": Case(keys={"m": M + 1}),
    "wider values": Case(keys={"e": 2 * D}),
    "wider keys": Case(q={"d": 2 * D}),
    "two rows": Case(q={"b": 2}),
    "two queries": Case(q={"n": 2}),
    "double": Case(q={"dtype": torch.float64}),
    "dropout": Case(call={"dropout": 0.5}),
    "at a place": Case(call={"q_positions": torch.tensor([7])}),
    "all slots full": Case(keys={"at": Later(lambda: torch.arange(M), True)}),
    "some slots empty": Case(keys={"at": Later(lambda: torch.arange(M) - 1, False)}),
    "written places": Case(keys={"at": torch.arange(M)}),
    "written empty slots": Case(keys={"at": torch.arange(M) - 1}),
    "lse": Case(asked={"lse": True}),
    "weights": Case(asked={"weights": True}),
    "forced": Case(asked={"forced": "chunked"}),
    "learned": Case(q={"learned": True}, within=nullcontext),
    "frozen": Case(within=nullcontext),
    "inference": Case(within=torch.inference_mode),
}
BAD = {
    "keys of another type": Case(keys={"dtype": torch.float64}),
    "heads that do not divide": Case(keys={"g": 3}),
    "places that are no integers": Case(call={"q_positions": torch.tensor([7.0])}),
    "places of another length": Case(call={"q_positions": torch.arange(3)}),
    "an executor that cannot": Case(q={"n": 1}, asked={"forced": "flex"}, call={"dropout": 0.5}),
    "an executor that is not there": Case(asked={"forced": "fusion"}),
    "dropout of one": Case(call={"dropout": 1.0}),
}


def planned(case: Case, rule: Rule) -> tuple[str, bool, bool]:
    """Return the executor of a case, whether keys are made dense, and whether places matter."""
    with case.within():
        call = made(case, rule)
        executor, dense = executor_for(call, **case.asked)
        return executor.name, dense, call.placed


@pytest.mark.parametrize("before", CASES)
def test_what_was_planned_before_changes_no_plan(before: str) -> None:
    for after, case in CASES.items():
        rule = Rule()
        planned(CASES[before], rule)
        assert planned(case, rule) == planned(case, Rule()), (before, after)
        assert planned(CASES[before], rule) == planned(CASES[before], Rule()), (after, before)


@pytest.mark.parametrize("bad", BAD)
def test_what_was_planned_before_lets_no_error_pass(bad: str) -> None:
    with pytest.raises(RegardError) as first:
        planned(BAD[bad], Rule())
    rule = Rule()
    for _ in range(2):
        planned(CASES["plain"], rule)
        planned(CASES["at a place"], rule)
        with pytest.raises(RegardError) as again:
            planned(BAD[bad], rule)
        assert str(again.value) == str(first.value)


def test_transforms_are_planned_anew() -> None:
    """The same shapes inside of a transform have fewer executors to choose from."""
    rule, found = Rule(), []
    with torch.no_grad():
        call = made(CASES["plain"], rule)
        executor_for(call)

        def inside(q: torch.Tensor) -> torch.Tensor:
            for one in (rule, Rule()):
                found.append(executor_for(Call(q, call.keys, one), lse=True)[0].name)
            return q

        torch.func.vmap(inside)(call.q[None])
        executor_for(call, lse=True)
        torch.func.vmap(inside)(call.q[None])
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_copies_of_a_rule_remember_nothing() -> None:
    rule = Rule()
    planned(CASES["plain"], rule)
    for copy in (deepcopy(rule), pickle.loads(pickle.dumps(rule)), rule.shift(3), rule.replace()):
        assert "_step" not in vars(copy)
    assert (rule, repr(rule), hash(rule)) == (Rule(), repr(Rule()), hash(Rule()))
