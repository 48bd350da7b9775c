"""Find layers by name: every mechanism, those of this package and those of others."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from regard.core.errors import RuleError, fail
from regard.layers.base import Can, Layer

L = TypeVar("L", bound=type[Layer])
_layers: dict[str, type[Layer]] = {}


def register(*names: str) -> Callable[[L], L]:
    """Register a class of layers under one or more names.

    >>> @register("example")
    ... class Example(Layer): ...
    >>> get("example") is Example, _layers.pop("example") is Example
    (True, True)
    """

    def keep(kind: L) -> L:
        if not (isinstance(kind, type) and issubclass(kind, Layer)):
            fail(RuleError, "layer", repr(kind), "a subclass of Layer", "derive from Layer")
        for name in names:
            before = _layers.get(name)
            if before is not None and before.__qualname__ != kind.__qualname__:
                fail(
                    RuleError, "name", f"{name!r}, which {before.__qualname__} has",
                    "a name of its own", "choose another name",
                )  # fmt: skip
            _layers[name] = kind
        return kind

    return keep


@functools.cache
def _load() -> None:
    package = importlib.import_module("regard.layers")
    for found in pkgutil.iter_modules(package.__path__, "regard.layers."):
        importlib.import_module(found.name)


def names() -> list[str]:
    """List the names of all layers."""
    _load()
    return sorted(_layers)


def get(name: str) -> type[Layer]:
    """Give the class of a name; `package.module:Class` finds one that is not registered.

    The word attention may be left out at the end of a name.

    >>> get("gqa").__name__
    'GroupedQuery'
    >>> get("sigmoid") is get("sigmoid_attention")
    True
    """
    _load()
    for full in (name, f"{name}_attention"):
        if full in _layers:
            return _layers[full]
    module, _, attribute = name.partition(":")
    if attribute:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as broken:
            fail(RuleError, "name", f"{name!r} ({broken})", "an importable class", "check the path")
        kind: type[Layer] = register()(found)
        return kind
    near = difflib.get_close_matches(name, _layers, n=3, cutoff=0.5)
    fail(
        RuleError, "name", repr(name),
        f"a layer; near: {', '.join(near)}" if near else "one of regard.layers.names()",
        "take one of regard.layers.list()",
    )  # fmt: skip


def layer(name: str, *args: Any, **settings: Any) -> Layer:
    """Make any mechanism by its name, with the parameters of its paper.

    >>> import torch, regard
    >>> mixer = regard.layer("gqa", dim=64, heads=8, kv_heads=2, causal=True, position="rotary")
    >>> mixer(torch.randn(1, 10, 64)).shape
    torch.Size([1, 10, 64])
    """
    kind = get(name)
    try:
        return kind(*args, **settings)
    except TypeError as wrong:
        said = str(wrong).replace(f"{kind.__name__}.__init__() ", "")
        if "argument" not in said:
            raise
        fail(
            RuleError, "settings", said, f"the arguments of {kind.__name__}",
            f"see help({kind.__module__}.{kind.__name__})",
        )  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One line of the table: a name, its class, what it can do, and what it is in a sentence."""

    name: str
    kind: type[Layer]
    can: Can
    about: str


class Listing(tuple[Entry, ...]):
    """Every layer with what it can do; printed, a table in Markdown."""

    def __repr__(self) -> str:
        columns = list(asdict(Can()))
        heads = " | ".join(c.replace("_", " ") for c in columns)
        lines = [f"| layer | {heads} | what it is |", "|" + "---|" * (len(columns) + 2)]
        for entry in self:
            marks = ("yes" if on else "" for on in asdict(entry.can).values())
            lines.append(f"| `{entry.name}` | {' | '.join(marks)} | {entry.about} |")
        return "\n".join(lines)


def listing() -> Listing:
    """List every layer with what it can do.

    >>> print(repr(listing())[:40])
    | layer | causal | bidirectional | cross
    """
    kinds = {name: get(name) for name in names()}
    return Listing(
        Entry(name, kind, kind.can, (kind.__doc__ or "").split("\n")[0].rstrip("."))
        for name, kind in kinds.items()
    )
