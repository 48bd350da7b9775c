"""Claim a row of the paper catalogue in the code.

A claim says that this object is how that paper is run. It is no proof: `regard.papers` reads the
claims and computes each row's state from them and from measured evidence. This module knows
nothing of the catalogue (core imports nothing above it), so a claim of a row that does not
exist is found by a test and by `regard papers`, not here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from regard.core.errors import RuleError, fail

T = TypeVar("T")
_KEY = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_claims: dict[str, dict[str, MethodClaim]] = {}


@dataclass(frozen=True)
class MethodClaim:
    """One object that runs one row: `key`, the object, its place, and how it is called."""

    key: str
    obj: Any
    module: str
    name: str
    call: str = ""

    @property
    def place(self) -> str:
        """Folder under `regard` of the object, or its top package if elsewhere."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "regard" and len(parts) > 1 else parts[0]

    @property
    def path(self) -> str:
        """Import path of the object, as `module:name`."""
        return f"{self.module}:{self.name}"


def method(*keys: str, call: str = "") -> Callable[[T], T]:
    """Claim the rows `keys` of the catalogue for the class or function below.

    Several objects may claim one row (a layer and its converter), and one object several rows.
    `call` is code that shows how to use it, where the first example of its docstring does not.

    >>> @method("moh")
    ... class Heads: ...
    >>> [claim.name for claim in claims_of("moh") if claim.obj is Heads]
    ['Heads']
    >>> method("Mixture of Heads")
    Traceback (most recent call last):
      ...
    regard.core.errors.RuleError: `key`: got 'Mixture of Heads'; expected lower-case words joined \
by underscores. Fix: use the row's key, as `regard papers search` prints it.
    """
    if not keys:
        fail(RuleError, "keys", "none", "at least one key of the catalogue", 'write @method("moh")')
    for key in keys:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            fail(
                RuleError,
                "key",
                repr(key),
                "lower-case words joined by underscores",
                "use the row's key, as `regard papers search` prints it",
            )

    def claim(obj: T) -> T:
        module = getattr(obj, "__module__", None)
        name = getattr(obj, "__qualname__", None)
        if not isinstance(module, str) or not isinstance(name, str):
            fail(
                RuleError,
                "obj",
                repr(obj),
                "a class or a function",
                "put the decorator on the class or function that runs the paper",
            )
        for key in keys:
            # Keyed by path, so that importing a module again replaces its claim.
            _claims.setdefault(key, {})[f"{module}:{name}"] = MethodClaim(
                key, obj, module, name, call
            )
        return obj

    return claim


def claims() -> tuple[MethodClaim, ...]:
    """List every claim made so far, by key and then by place."""
    return tuple(_claims[key][path] for key in sorted(_claims) for path in sorted(_claims[key]))


def claims_of(key: str) -> tuple[MethodClaim, ...]:
    """List the claims of one row; empty when no imported module claims it."""
    return tuple(_claims.get(key, {})[path] for path in sorted(_claims.get(key, {})))
