"""Errors that say how to fix them.

Every error that Regard raises is a `RegardError` of four parts: the argument, the value, what was
expected, and the fix.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NoReturn


class RegardError(Exception):
    """An error that names the argument, the value, what was expected, and the fix.

    >>> print(ShapeError("k", "4 heads", "a divisor of the 6 query heads", "repeat the heads"))
    `k`: got 4 heads; expected a divisor of the 6 query heads. Fix: repeat the heads.
    """

    def __init__(self, argument: str, got: object, expected: str, fix: str) -> None:
        self.argument, self.got, self.expected, self.fix = argument, got, expected, fix
        end = "" if fix.endswith((".", "?", "!")) else "."
        super().__init__(f"{self._wrong()}. Fix: {fix}{end}")

    def _wrong(self) -> str:
        """Return what is wrong, without the fix."""
        return f"`{self.argument}`: got {self.got}; expected {self.expected}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from `args`, which is the one sentence; the value may be anything,
        # so its text is pickled.
        return type(self), (self.argument, str(self.got), self.expected, self.fix), self._added()

    def _added(self) -> dict[str, Any]:
        """Return the attributes set on the error beside its four parts."""
        known = ("argument", "got", "expected", "fix")
        return {name: x for name, x in self.__dict__.items() if name not in known}


class ShapeError(RegardError):
    """A tensor has the wrong rank or size."""


class DtypeError(RegardError):
    """A tensor has the wrong dtype, or dtypes are mixed."""


class DeviceError(RegardError):
    """Tensors live on different devices, or on one that cannot do this."""


class ValueRangeError(RegardError, ValueError):
    """A number is out of range."""


class RuleError(RegardError):
    """A rule, or one of its parts, is invalid."""


class ExecutorError(RegardError):
    """No executor, or not the one that was forced, can run this call."""


class CapabilityError(RegardError):
    """A method does not support what it was asked for."""


class MissingExtraError(RegardError, ImportError):
    """An optional dependency is not installed; `expected` says what it is for.

    >>> print(MissingExtraError("rich", "nothing", "it draws tables", "pip install 'regard[see]'"))
    rich is required: it draws tables. Fix: pip install 'regard[see]'.
    """

    def _wrong(self) -> str:
        return f"{self.argument} is required: {self.expected}"


class VersionError(RegardError, ImportError):
    """A dependency is installed in a version outside the supported range."""


def fail(kind: type[RegardError], argument: str, got: object, expected: str, fix: str) -> NoReturn:
    """Raise `kind` with its four parts (an expression, so that checks stay one line)."""
    raise kind(argument, got, expected, fix)


def nearest(name: object, known: Iterable[str], otherwise: str) -> str:
    """Suggest the most similar name, for the `fix` of an error, or return `otherwise`.

    >>> nearest("windw", ["sinks", "window"], "leave it out")
    "did you mean 'window'?"
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def shape_of(x: Any) -> str:
    """Describe `x`, for the `got` part of an error.

    >>> import torch
    >>> shape_of(torch.zeros(2, 3)), shape_of(7)
    ('a tensor of shape [2, 3]', '7 (int)')
    """
    shape = getattr(x, "shape", None)
    if shape is not None:
        return f"a tensor of shape {list(shape)}"
    return f"{x!r} ({type(x).__name__})"


def need(module: str, extra: str, why: str) -> ModuleType:
    """Import an optional `module`, or raise an error that says how to install it.

    >>> need("json", "see", "to read runs").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise MissingExtraError(
            module,
            "no such package",
            f"it {why}",
            f"pip install 'regard[{extra}]'",
        ) from missing
