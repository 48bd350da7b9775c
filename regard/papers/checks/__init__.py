"""Checks: one function for each row, which measures a claim of the paper and can fail.

A file here holds the checks of a group of rows; `measure` holds what they measure with. A check
seeds nothing (the runner seeds torch before each), runs in seconds on two cores unless it is
marked `long`, and returns what it measured.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from regard.core.errors import RuleError, fail

Number = float | int | str | bool


@dataclass(frozen=True)
class Measured:
    """What a check found: the `claim` in words, the numbers, and whether the claim held.

    `matches` names the independent implementation, or the number printed in the paper, that the
    result equals; only then may the row be called matched. `left_out` says which part of the
    row's check this one does not measure.
    """

    claim: str
    held: bool
    numbers: Mapping[str, Number] = field(default_factory=dict)
    matches: str = ""
    left_out: str = ""


@dataclass(frozen=True)
class Check:
    """A check function and the row it belongs to."""

    key: str
    function: Callable[[], Measured]
    long: bool


_checks: dict[str, Check] = {}


def check(
    key: str, *, long: bool = False
) -> Callable[[Callable[[], Measured]], Callable[[], Measured]]:
    """Make the function below the check of the row `key`.

    A `long` check is run by hand (`regard papers check KEY --long`) and its evidence committed.
    """

    def register(function: Callable[[], Measured]) -> Callable[[], Measured]:
        before = _checks.get(key)
        there = f"{function.__module__}:{function.__qualname__}"
        if before is not None:
            here = f"{before.function.__module__}:{before.function.__qualname__}"
            if here != there:
                fail(
                    RuleError,
                    "key",
                    repr(key),
                    f"a row without a check; {here} is one",
                    "measure both claims in one function",
                )
        _checks[key] = Check(key, function, long)
        return function

    return register


@functools.cache
def _load() -> None:
    for found in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(found.name)


def checks() -> dict[str, Check]:
    """Give every check by key, importing the files of this folder on first use."""
    _load()
    return dict(sorted(_checks.items()))
