"""Find tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from regard.core.errors import RuleError, fail, nearest
from regard.core.registry import Registry
from regard.tasks.base import PATTERNS, Task

T = TypeVar("T", bound=type[Task])
_tasks = Registry[Task]("task", "regard.tasks", "pass one of regard.tasks.list()")


def register(name: str) -> Callable[[T], T]:
    """Register a task class under a name."""

    def keep(kind: T) -> T:
        kind.name = name
        return _tasks.add(name)(kind)

    return keep


def names() -> list[str]:
    """List the names of all tasks."""
    return list(_tasks.all())


def get(name: str) -> type[Task]:
    """Return the task class of a name.

    >>> get("mqar").__name__
    'Mqar'
    """
    kind = _tasks.get(name)
    if ":" in name:
        if not issubclass(kind, Task):
            fail(RuleError, "task", repr(name), "a subclass of Task", "derive from Task")
        kind.name = name
    return kind


def task(name: str, **knobs: Any) -> Task:
    """Build a task by its name and knobs.

    >>> task("needle", length=64).length
    64
    """
    kind = get(name)
    known = [field.name for field in fields(kind)]
    for knob in knobs:
        if knob not in known:
            fail(
                RuleError, "knobs", repr(knob), f"a knob of {name}: {', '.join(known) or 'none'}",
                nearest(knob, known, "leave it out"),
            )  # fmt: skip
    for field in fields(kind):
        value, usual = knobs.get(field.name), field.default
        kinds = (int, float) if isinstance(usual, float) else type(usual)
        if field.name in knobs and type(usual) in (int, float) and not isinstance(value, kinds):
            fail(
                RuleError, f"knobs: {field.name}", repr(value),
                f"a {type(usual).__name__}, as {usual} is", f"pass {name}:{field.name}={usual}",
            )  # fmt: skip
    return kind(**knobs)


@dataclass(frozen=True)
class Entry:
    """One row of the table: a name, its class, its patterns, and a sentence about it."""

    name: str
    kind: type[Task]
    patterns: tuple[str, ...]
    about: str


class Listing(tuple[Entry, ...]):
    """Every task; prints as a Markdown table."""

    def __repr__(self) -> str:
        lines = ["| task | patterns | knobs | what it is |", "|---|---|---|---|"]
        for entry in self:
            ways = ", ".join(PATTERNS[p] for p in entry.patterns)
            knobs = ", ".join(f"`{f.name}={f.default}`" for f in fields(entry.kind))
            lines.append(f"| `{entry.name}` | {ways} | {knobs} | {entry.about} |")
        return "\n".join(lines)


def listing() -> Listing:
    """List every task.

    >>> print(repr(listing())[:40])
    | task | patterns | knobs | what it is |
    """
    kinds = {name: get(name) for name in names()}
    return Listing(
        Entry(name, kind, kind.patterns, (kind.__doc__ or "").split("\n")[0].rstrip("."))
        for name, kind in kinds.items()
    )
