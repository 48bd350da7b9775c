"""Controls by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from regard.controls.base import Control, Edits
from regard.controls.edit import AttentionEdit
from regard.controls.text_tokens import token_set
from regard.core.errors import RuleError, fail, nearest, shape_of
from regard.core.registry import Registry

C = TypeVar("C", bound=type[Control])
_controls = Registry[Control]("control", "regard.controls", "take one of regard.controls.known()")


def register(*names: str) -> Callable[[C], C]:
    """Register a control by one or more names; the first is its own.

    >>> @register("example")
    ... class Example(Control): ...
    >>> Example.name, _controls.kinds.pop("example") is Example
    ('example', True)
    """

    def add(kind: C) -> C:
        kind.name = names[0]
        return _controls.add(*names)(kind)

    return add


def known() -> dict[str, type[Control]]:
    """Return every control by name.

    >>> "emphasis" in known()
    True
    """
    return _controls.all()


def control(name: str, **settings: Any) -> Control:
    """Build a control by name; `which` may be a word, numbers of tokens, or a mask.

    >>> control("emphasis", which="Paris", strength=2.0).strength
    2.0
    >>> control("emphasiss")
    Traceback (most recent call last):
      ...
    regard.core.errors.RuleError: `control`: got 'emphasiss'; expected a control; near: emphasis...
    """
    kind = _controls.get(name)
    if not issubclass(kind, Control):
        fail(RuleError, "control", repr(name), "a subclass of Control", "derive from Control")
    fields = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(settings) - fields)
    if unknown:
        fail(
            RuleError, "settings", f"{unknown} for {name}", f"some of {sorted(fields)}",
            nearest(unknown[0], fields, "leave it out"),
        )  # fmt: skip
    given = {key: token_set(x) if key == "which" else x for key, x in settings.items()}
    try:
        return kind(**given)
    except TypeError as error:
        return fail(
            RuleError,
            "settings",
            f"{sorted(settings)} for {name} ({error})",
            f"what the control takes: {', '.join(sorted(fields))}",
            "pass what is missing",
        )


def make_control(asked: Any, **settings: Any) -> Control:
    """Build a control from a name, a control, or edits."""
    given = {key: x for key, x in settings.items() if x is not None}
    if isinstance(asked, str):
        return control(asked, **given)
    if isinstance(asked, AttentionEdit | list | tuple):
        return Edits(asked, **given)  # type: ignore[arg-type]
    if not isinstance(asked, Control):
        fail(
            RuleError, "control", shape_of(asked), "a name, a control, or edits",
            'pass "emphasis", or regard.controls.AddBias("Paris", 2.0)',
        )  # fmt: skip
    fields = {f.name for f in dataclasses.fields(asked)}
    unknown = sorted(set(given) - fields)
    if unknown:
        fail(
            RuleError, unknown[0], f"given for {type(asked).__name__}", f"some of {sorted(fields)}",
            "set it where the control is made",
        )  # fmt: skip
    if "which" in given:
        given["which"] = token_set(given["which"])
    return asked.replace(**given) if given else asked
