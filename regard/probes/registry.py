"""Probes by name, and groups of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from regard.core.errors import RuleError, fail, shape_of
from regard.probes.base import Probe

MODULES = (
    "roles", "sinks", "shape", "importance", "spans", "rhythm", "logits", "parameters",
    "positions", "rank", "words", "vision", "prefill", "temperature", "lags", "parallel_context",
)  # fmt: skip
_probes: dict[str, type[Probe]] = {}
_groups: dict[str, list[str]] = {}


def register(name: str, groups: Iterable[str] = ()) -> Callable[[type[Any]], type[Any]]:
    """Make a probe known by a name, and as one of some groups."""

    def add(kind: type[Any]) -> type[Any]:
        _probes[name] = kind
        for group in groups:
            _groups.setdefault(group, []).append(name)
        return kind

    return add


def known() -> dict[str, type[Probe]]:
    """Every probe by name.

    >>> "induction" in known()
    True
    """
    for module in MODULES:
        importlib.import_module(f"regard.probes.{module}")
    return dict(_probes)


def groups() -> dict[str, list[str]]:
    """Every group, and the probes in it.

    >>> "previous_token" in groups()["roles"]
    True
    """
    known()
    return {name: list(members) for name, members in _groups.items()}


def make_probes(asked: Any) -> list[Probe]:
    """Read what a user asks for: a probe, a name, a group, or a list of these.

    >>> [probe.name for probe in make_probes(["induction", "entropy"])]
    ['induction', 'entropy']
    """
    many = [asked] if isinstance(asked, (str, Probe)) else asked
    made: dict[str, Probe] = {}
    for one in many:
        if isinstance(one, Probe):
            made[f"{one.name} {len(made)}" if one.name in made else one.name] = one
            continue
        if not isinstance(one, str):
            fail(
                RuleError, "probes", shape_of(one), "names, groups, or Probe instances",
                "pass probes=['roles', 'sinks'], say",
            )  # fmt: skip
        for name in groups().get(one, [one]):
            if name not in known():
                every = [*known(), *groups()]
                near = difflib.get_close_matches(name, every, n=1)
                fail(
                    RuleError, "probes", repr(name), f"one of {', '.join(sorted(every))}",
                    f"did you mean {near[0]!r}?" if near else "name a probe or a group",
                )  # fmt: skip
            if name not in made:
                made[name] = known()[name]()
                made[name].named = name == one
    return list(made.values())


__all__ = ["groups", "known", "make_probes", "register"]
