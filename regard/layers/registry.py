"""Find layers by name: those of this package, and those of other packages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from regard.core.errors import RuleError, fail, nearest
from regard.core.registry import Registry
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities

L = TypeVar("L", bound=type[Layer])
_layers = Registry[Layer](
    "layer", "regard.layers", "take one of regard.layers.list()", argument="name"
)


def register(*names: str) -> Callable[[L], L]:
    """Register a class of layers under one or more names.

    >>> @register("example")
    ... class Example(Layer): ...
    >>> get("example") is Example, _layers.kinds.pop("example") is Example
    (True, True)
    """

    def keep(kind: L) -> L:
        if not (isinstance(kind, type) and issubclass(kind, Layer)):
            fail(RuleError, "layer", repr(kind), "a subclass of Layer", "derive from Layer")
        return _layers.add(*names)(kind)

    return keep


def names() -> list[str]:
    """List the names of all layers."""
    return list(_layers.all())


def get(name: str) -> type[Layer]:
    """Return the class of a name; `package.module:Class` finds one that is not registered.

    The word attention may be left out at the end of a name.

    >>> get("gqa").__name__
    'GroupedQuery'
    >>> get("sigmoid") is get("sigmoid_attention")
    True
    """
    kinds = _layers.all()
    for full in (name, f"{name}_attention"):
        if full in kinds:
            return kinds[full]
    if ":" in name:
        kind: type[Layer] = register()(_layers.imported(name))
        return kind
    return _layers.get(name)


def layer(name: str, *args: Any, **settings: Any) -> Layer:
    """Build any mechanism by its name, with the parameters of its paper.

    >>> import torch, regard
    >>> mixer = regard.layer("gqa", dim=64, heads=8, kv_heads=2, causal=True, position="rotary")
    >>> mixer(torch.randn(1, 10, 64)).shape
    torch.Size([1, 10, 64])
    """
    kind = get(name)
    try:
        return kind(*args, **settings)
    except TypeError as wrong:
        message = re.sub(r"^\w+\.\w+\(\) ", "", str(wrong))
        if "argument" not in message:
            raise
        unknown = re.search(r"unexpected keyword argument '(\w+)'", message)
        if unknown:
            known = settings_of(kind)
            fail(
                RuleError, "settings", repr(unknown[1]),
                f"a setting of {name}: {', '.join(known)}",
                nearest(unknown[1], known, "leave it out"),
            )  # fmt: skip
        fail(
            RuleError, "settings", message, f"the arguments of {kind.__name__}",
            f"see help({kind.__module__}.{kind.__name__})",
        )  # fmt: skip


def settings_of(kind: type[Layer]) -> list[str]:
    """List the settings of a class: the parameters of `__init__`, and of `make` in some."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        for name in ("__init__", "make"):
            if name in vars(base) and issubclass(base, Layer):
                given = list(inspect.signature(vars(base)[name]).parameters.values())[1:]
                found |= {p.name: None for p in given if "VAR" not in p.kind.name}
    return list(found)


@dataclass(frozen=True)
class Entry:
    """One line of the table: a name, its class, its capabilities and a one-line description."""

    name: str
    kind: type[Layer]
    can: Capabilities
    about: str


class Listing(tuple[Entry, ...]):
    """Every layer with its capabilities; prints as a Markdown table."""

    def __repr__(self) -> str:
        columns = list(asdict(Capabilities()))
        heads = " | ".join(c.replace("_", " ") for c in columns)
        lines = [f"| layer | {heads} | what it is |", "|" + "---|" * (len(columns) + 2)]
        for entry in self:
            marks = ("yes" if on else "" for on in asdict(entry.can).values())
            lines.append(f"| `{entry.name}` | {' | '.join(marks)} | {entry.about} |")
        return "\n".join(lines)


def listing() -> Listing:
    """List every layer with its capabilities.

    >>> print(repr(listing())[:40])
    | layer | causal | bidirectional | cross
    """
    kinds = {name: get(name) for name in names()}
    return Listing(
        Entry(name, kind, kind.can, (kind.__doc__ or "").split("\n")[0].rstrip("."))
        for name, kind in kinds.items()
    )
