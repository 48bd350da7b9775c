"""Memories of keys by name, for Regard's layers, which build one for each rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regard.core.errors import CapabilityError, RuleError, fail, shape_of
from regard.core.rule import Rule
from regard.memories.base import KeyMemory
from regard.memories.full import Full
from regard.memories.kept import Kept
from regard.memories.low_rank import LowRank
from regard.memories.mapped import Mapped
from regard.memories.paged import Paged
from regard.memories.quantized import Quantized
from regard.memories.ring import Ring
from regard.memories.stores import Hosted

# Builds the memory of a layer's keys from the layer's rule.
KeyMaker = Callable[[Rule], KeyMemory]


def ring(rule: Rule) -> KeyMemory:
    """Build a ring where late queries see a window (and sinks) only, else keep everything."""
    try:
        return Ring.of(rule)
    except CapabilityError:
        return Kept()


def _quantized(bits: int) -> KeyMaker:
    return lambda rule: Kept(lambda: Quantized(bits, "channel"), lambda: Quantized(bits, "token"))


NAMED: dict[str, KeyMaker] = {
    "full": lambda rule: Full(),
    "ring": ring,
    "paged": lambda rule: Paged(),
    "hosted": lambda rule: Kept(Hosted),
    "mapped": lambda rule: Kept(Mapped),
    "int8": _quantized(8),
    "int4": _quantized(4),
    "int2": _quantized(2),
    "low_rank": lambda rule: Kept(lambda: LowRank(16)),
}


def key_maker(keys: Any) -> KeyMaker:
    """Return the maker for a name, a class of memories, or a function of the rule.

    >>> from regard.core.support import Causal, Sinks, Window
    >>> type(key_maker("ring")(Rule(Causal() & (Window(8) | Sinks(2))))).__name__
    'Ring'
    >>> type(key_maker("ring")(Rule(Causal()))).__name__, type(key_maker(Paged)(Rule())).__name__
    ('Kept', 'Paged')
    """
    if isinstance(keys, str) and keys in NAMED:
        return NAMED[keys]
    if isinstance(keys, str) or not callable(keys):
        fail(
            RuleError, "memory", repr(keys) if isinstance(keys, str) else shape_of(keys),
            f"one of {', '.join(NAMED)}, or a function of the layer's rule",
            'pass memory="int4", or memory=lambda rule: Kept(Hosted)',
        )  # fmt: skip
    of_rule = not (isinstance(keys, type) and issubclass(keys, KeyMemory))

    def make(rule: Rule) -> KeyMemory:
        made = keys(rule) if of_rule else keys()
        if not isinstance(made, KeyMemory):
            fail(RuleError, "memory", shape_of(made), "a KeyMemory", "return a KeyMemory")
        return made

    return make
