"""Checks: one file for each row, named by its key; each yields claims that can fail.

A check draws from torch, numpy, random and `regard.papers.seeding` alone, and sets no seed: the
runner does, five times. `docs/evidence.md` shows how one is written.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from regard.core.errors import MissingExtraError, RuleError, fail
from regard.papers.claims import Claim

Claims = Iterator[Claim]
T = TypeVar("T", bound=Callable[[], Claims])


@dataclass(frozen=True)
class Check:
    """A check function and the row it belongs to.

    `narrowed` and `left_out` map words of the catalogue's sentences to what is asked less of them,
    or why nothing is. `beyond` says what the paper shows that neither asks for. `same` is why
    every seed gives the same numbers, where it does. `long` checks take over a minute a seed.
    """

    key: str
    function: Callable[[], Claims]
    long: bool = False
    narrowed: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    beyond: str = ""
    same: str = ""


_checks: dict[str, Check] = {}
# Rows whose check needs a package that is not installed, and the error that names it.
_lacking: dict[str, MissingExtraError] = {}


def check(
    key: str,
    *,
    long: bool = False,
    narrowed: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    beyond: str = "",
    same: str = "",
) -> Callable[[T], T]:
    """Make the function below the check of the row `key`.

    A `long` check is run by hand (`regard papers check KEY --long`) and its evidence committed.
    """

    def register(function: T) -> T:
        if not inspect.isgeneratorfunction(inspect.unwrap(function)):
            fail(
                RuleError,
                key,
                f"{function.__qualname__}, which yields nothing",
                "a function that yields claims",
                "see docs/evidence.md",
            )
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
        _checks[key] = Check(
            key, function, long, dict(narrowed or {}), dict(left_out or {}), beyond, same
        )
        return function

    return register


@functools.cache
def _load() -> None:
    for found in pkgutil.iter_modules(__path__, f"{__name__}."):
        try:
            importlib.import_module(found.name)
        except MissingExtraError as missing:
            _lacking[found.name.rpartition(".")[2]] = missing


def checks() -> dict[str, Check]:
    """Return every check by key, importing the files of this folder on first use.

    Those that need a package that is not installed are in `lacking()`.
    """
    _load()
    return dict(sorted(_checks.items()))


def lacking() -> dict[str, MissingExtraError]:
    """Return the rows whose check cannot run here, and the error that says what to install."""
    _load()
    return dict(_lacking)
