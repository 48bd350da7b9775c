"""Policies by name."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from regard.core.errors import RuleError, fail, shape_of
from regard.policies.base import Policy

P = TypeVar("P", bound=type[Policy])
_policies: dict[str, type[Policy]] = {}


def register(*names: str) -> Callable[[P], P]:
    """Make a policy known by one or more names; the first is its own.

    >>> @register("example")
    ... class Example(Policy): ...
    >>> type(policy("example")) is Example, _policies.pop("example") is Example
    (True, True)
    """

    def add(kind: P) -> P:
        kind.name = names[0]
        for name in names:
            before = _policies.get(name)
            if before is not None and before.__qualname__ != kind.__qualname__:
                fail(
                    RuleError, "name", f"{name!r}, which {before.__qualname__} has",
                    "a name of its own", "choose another name",
                )  # fmt: skip
            _policies[name] = kind
        return kind

    return add


@functools.cache
def _load() -> None:
    package = importlib.import_module("regard.policies")
    for found in pkgutil.iter_modules(package.__path__, "regard.policies."):
        importlib.import_module(found.name)


def known() -> dict[str, type[Policy]]:
    """Every policy by name.

    >>> "snapkv" in known()
    True
    """
    _load()
    return dict(sorted(_policies.items()))


def policy(name: str, **settings: Any) -> Policy:
    """Make a policy by name.

    >>> policy("streaming", sinks=2).sinks
    2
    >>> policy("snapvk")
    Traceback (most recent call last):
      ...
    regard.core.errors.RuleError: `policy`: got 'snapvk'; expected a policy; near: snapkv...
    """
    kinds = known()
    if name not in kinds:
        near = difflib.get_close_matches(str(name), kinds, n=3, cutoff=0.5)
        fail(
            RuleError, "policy", repr(name),
            f"a policy; near: {', '.join(near)}" if near else f"one of {', '.join(kinds)}",
            "take one of regard.policies.known()",
        )  # fmt: skip
    kind = kinds[name]
    fields = {f for f in kind.__dataclass_fields__ if kind.__dataclass_fields__[f].init}
    unknown = set(settings) - fields
    if unknown:
        near = difflib.get_close_matches(min(unknown), fields, n=1)
        fail(
            RuleError, "settings", f"{sorted(unknown)} for {name}", f"some of {sorted(fields)}",
            f"did you mean {near[0]!r}?" if near else "leave it out",
        )  # fmt: skip
    return kind(**settings)


def make_policies(asked: Any) -> list[Policy]:
    """Read what a user asks for: a name, a policy, or a list of these."""
    many = [asked] if isinstance(asked, str | Policy) else asked
    if not isinstance(many, list | tuple) or not many:
        fail(
            RuleError, "policies", shape_of(asked), "a name, a Policy, or a list of these",
            'pass "snapkv", or ["snapkv", policy("quantized", bits=4)]',
        )  # fmt: skip
    made = []
    for one in many:
        if not isinstance(one, str | Policy):
            fail(
                RuleError, "policies", shape_of(one), "a name or a Policy",
                'pass regard.policies.policy("snapkv")',
            )  # fmt: skip
        made.append(policy(one) if isinstance(one, str) else one)
    return made


__all__ = ["known", "make_policies", "policy", "register"]
