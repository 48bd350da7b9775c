"""Names with settings, as the command line writes them: `moh:active=3:shared=1`."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from regard.core.errors import CapabilityError, RuleError, fail
from regard.core.support import Causal
from regard.layers.attention import Attention
from regard.layers.base import Layer
from regard.layers.registry import get, layer
from regard.tasks import PATTERNS, Task
from regard.tasks.registry import task as make_task

# Settings that count heads are scaled from those of the small example.
_HEAD_COUNTS = ("active", "shared", "kv_heads")


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Read a name and its settings.

    >>> read_spec("moh:active=3:position=rotary")
    ('moh', {'active': 3, 'position': 'rotary'})
    >>> read_spec("mine:Own:size=2")  # a class of your own, by its path
    ('mine:Own', {'size': 2})
    """
    name, *settings = spec.split(":")
    if settings and settings[0].isidentifier():
        name = f"{name}:{settings.pop(0)}"
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            fail(
                RuleError, "settings", repr(spec), "NAME:SETTING=VALUE:...",
                "write mqar:length=128:pairs=8, for example",
            )  # fmt: skip
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return name, found


def task_of(spec: str) -> Task:
    """Build the task that a spec names."""
    name, knobs = read_spec(spec)
    return make_task(name, **knobs)


def why_not(kind: type[Layer], pattern: str) -> str | None:
    """Return why a layer does not support an attention pattern, or None.

    >>> why_not(get("linear"), "cs"), why_not(get("delta"), "ns")
    (None, 'it attends to the past only')
    """
    if pattern == "cs":
        return None if kind.can.causal else "it always attends to the future"
    if pattern == "ns":
        return None if kind.can.bidirectional else "it attends to the past only"
    if not kind.can.cross:
        return "it has no cross-attention"
    if pattern == "cc" and not (issubclass(kind, Attention) and _pairwise(kind)):
        return "it takes no mask of the context for each query"
    return None


def _pairwise(kind: type[Attention]) -> bool:
    """Return whether a rule decides each pair of query and key, so that a support applies."""
    return kind.look is Attention.look


def need_pattern(name: str, pattern: str) -> None:
    """Raise unless a layer supports a pattern."""
    if pattern not in PATTERNS:
        fail(
            RuleError, "pattern", repr(pattern),
            f"one of {', '.join(f'{k} ({v})' for k, v in PATTERNS.items())}", "pass cs",
        )  # fmt: skip
    reason = why_not(get(name), pattern)
    if reason is not None:
        others = [p for p in PATTERNS if why_not(get(name), p) is None]
        fail(
            CapabilityError, name, f"the pattern {pattern} ({PATTERNS[pattern]})",
            f"one of {', '.join(others)}; {reason}",
            "leave the layer out, or choose tasks of its patterns",
        )  # fmt: skip


def make_layer(spec: str, pattern: str, dim: int, heads: int, longest: int) -> Layer:
    """Build a layer for a pattern, with sizes that suit the backbone unless the spec names them.

    >>> make_layer("gqa:kv_heads=2", "cs", 32, 4, 64).causal
    True
    """
    name, given = read_spec(spec)
    need_pattern(name, pattern)
    kind = get(name)
    settings = {**_sizes(name, heads, longest), **given}
    # The context has the same width; in cc a query sees the context up to its own position.
    if pattern in ("nc", "cc"):
        settings["context_dim"] = dim
    if pattern == "cc":
        settings["support"] = Causal()
    if kind.can.causal:
        settings["causal"] = pattern == "cs"
    return layer(name, dim, **settings)


def _sizes(name: str, heads: int, longest: int) -> dict[str, Any]:
    """Return heads and other required arguments, scaled from the small example of the class."""
    kind = get(name)
    tiny = kind.tiny
    asked: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) and issubclass(base, Layer):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            asked |= {p.name for p in parameters if p.default is p.empty}
    sizes: dict[str, Any] = {"heads": heads} if "heads" in tiny else {}
    for key in asked & set(tiny) - {"dim", "context_dim", "heads"}:
        sizes[key] = tiny[key]
        if key in _HEAD_COUNTS and "heads" in tiny:
            sizes[key] = max(1, round(tiny[key] * heads / tiny["heads"]))
        if key in ("longest", "tokens") or (key == "length" and tiny[key] == kind.tiny_tokens):
            sizes[key] = longest
    return sizes
