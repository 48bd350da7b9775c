"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from regard.core.errors import RuleError, fail, nearest, shape_of
from regard.core.registry import Registry
from regard.policies.base import Policy

P = TypeVar("P", bound=type[Policy])
_policies = Registry[Policy]("policy", "regard.policies", "take one of regard.policies.known()")


# Classes of policies that are wrapped in another when built by name.
_wraps: dict[type[Policy], type[Policy]] = {}


def register(*names: str, wrap: type[Policy] | None = None) -> Callable[[P], P]:
    """Register a policy by one or more names; the first is its own.

    Built by name it is wrapped in `wrap`, which decides when it acts: `wrap(inner=...)`.

    >>> @register("example")
    ... class Example(Policy): ...
    >>> type(policy("example")) is Example, _policies.kinds.pop("example") is Example
    (True, True)
    """

    def add(kind: P) -> P:
        lacking = sorted(getattr(kind, "__abstractmethods__", ()))
        if lacking:
            fail(
                RuleError, kind.__name__, "a policy without " + ", ".join(lacking),
                "a class with every method its kinds require",
                f"define {', '.join(lacking)}; see regard.policies.kinds",
            )  # fmt: skip
        kind.name = names[0]
        if wrap is not None:
            _wraps[kind] = wrap
        return _policies.add(*names)(kind)

    return add


def known() -> dict[str, type[Policy]]:
    """Return every policy by name.

    >>> "snapkv" in known()
    True
    """
    return _policies.all()


def policy(name: str, **settings: Any) -> Policy:
    """Build a policy by name.

    >>> policy("streaming", sinks=2).sinks
    2
    >>> policy("snapvk")
    Traceback (most recent call last):
      ...
    regard.core.errors.RuleError: `policy`: got 'snapvk'; expected a policy; near: snapkv...
    """
    kind = _policies.get(name)
    if not issubclass(kind, Policy):
        fail(RuleError, "policy", repr(name), "a subclass of Policy", "derive from a policy's base")
    if ":" in name and kind.name == Policy.name:
        kind.name = name
    wrap = _wraps.get(kind)
    fields = _fields(kind)
    own = (_fields(wrap) - fields - {"inner"}) if wrap is not None else set[str]()
    outer = {name: settings.pop(name) for name in own & settings.keys()}
    unknown = set(settings) - fields
    if unknown:
        fail(
            RuleError, "settings", f"{sorted(unknown)} for {name}",
            f"some of {sorted(fields | own)}",
            nearest(min(unknown), fields | own, "leave it out"),
        )  # fmt: skip
    try:
        made = kind(**settings)
    except TypeError as error:
        fail(
            RuleError, "settings", f"{settings} for {name} ({error})", "settings of the policy",
            "pass the settings it needs, and no others",
        )  # fmt: skip
    # A class that wraps takes `inner`, which Policy does not declare.
    return made if wrap is None else wrap(inner=made, **outer)  # type: ignore[call-arg]


def _fields(kind: Any) -> set[str]:
    return {name for name, f in kind.__dataclass_fields__.items() if f.init}


def make_policies(asked: Any) -> list[Policy]:
    """Build a list of policies from a name, a policy, or a list of these."""
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
