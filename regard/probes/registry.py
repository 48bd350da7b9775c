"""Probes by name, and groups of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from regard.core.errors import RuleError, fail, shape_of
from regard.core.registry import Registry
from regard.probes.base import Probe

_probes = Registry[Probe]("probe", "regard.probes", "name a probe or a group", argument="probes")
_groups: dict[str, set[str]] = {}


def register(name: str, groups: Iterable[str] = ()) -> Callable[[type[Any]], type[Any]]:
    """Register a probe by a name, and as one of some groups."""

    def add(kind: type[Any]) -> type[Any]:
        for group in groups:
            _groups.setdefault(group, set()).add(name)
        return _probes.add(name)(kind)

    return add


def known() -> dict[str, type[Probe]]:
    """Return every probe by name.

    >>> "induction" in known()
    True
    """
    return _probes.all()


def groups() -> dict[str, list[str]]:
    """Return every group, and the probes in it.

    >>> "previous_token" in groups()["roles"]
    True
    """
    known()
    return {name: sorted(members) for name, members in sorted(_groups.items())}


def make_probes(asked: Any) -> list[Probe]:
    """Read what a user asks for: a probe, a name, a group, or a list of these.

    >>> [probe.name for probe in make_probes(["induction", "entropy"])]
    ['induction', 'entropy']
    """
    many = [asked] if isinstance(asked, (str, Probe)) else asked
    if not isinstance(many, Iterable):
        fail(
            RuleError, "probes", shape_of(asked), "names, groups, or Probe instances",
            "pass probes=['roles', 'sinks']",
        )  # fmt: skip
    made: dict[str, Probe] = {}
    for one in many:
        if isinstance(one, Probe):
            made[f"{one.name} {len(made)}" if one.name in made else one.name] = one
            continue
        if not isinstance(one, str):
            fail(
                RuleError, "probes", shape_of(one), "names, groups, or Probe instances",
                "pass probes=['roles', 'sinks']",
            )  # fmt: skip
        for name in groups().get(one, [one]):
            if name not in known() and ":" not in name:
                _probes.fail_unknown(name, [*known(), *groups()])
            if name not in made:
                made[name] = _made(name)
                made[name].named = name == one
    return list(made.values())


def _made(name: str) -> Probe:
    kind = _probes.get(name)
    if not issubclass(kind, Probe):
        fail(RuleError, "probes", repr(name), "a subclass of Probe", "derive from Probe")
    try:
        return kind()
    except TypeError as error:
        fail(
            RuleError, "probes", f"{name!r} ({error})", "a probe that needs no settings",
            "look from Python, and pass the probe made",
        )  # fmt: skip
