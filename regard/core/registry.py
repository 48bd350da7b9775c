"""Classes by name, with suggestions for misspelled names: layers, policies, probes, tasks."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from regard.core.errors import RuleError, fail

T = TypeVar("T")
K = TypeVar("K", bound=type[Any])


class Registry(Generic[T]):
    """Classes of one kind, `what`, in the modules of one package.

    `fix` is the fix named in errors; `argument` is the argument that the name is passed as.

    >>> colors = Registry("color", "regard.core", "take one of these")
    >>> @colors.add("red")
    ... class Red: ...
    >>> colors.kinds["red"] is Red
    True
    """

    def __init__(self, what: str, package: str, fix: str, argument: str | None = None) -> None:
        self.what, self.package, self.fix = what, package, fix
        self.argument = argument or what
        self.kinds: dict[str, type[T]] = {}
        self._loaded = False

    def add(self, *names: str) -> Callable[[K], K]:
        """Register a class under one or more unique names."""

        def keep(kind: K) -> K:
            for name in names:
                before = self.kinds.get(name)
                if before is not None and before.__qualname__ != kind.__qualname__:
                    fail(
                        RuleError, "name", f"{name!r}, which {before.__qualname__} has",
                        "a unique name", "choose another name",
                    )  # fmt: skip
                self.kinds[name] = kind
            return kind

        return keep

    def all(self) -> dict[str, type[T]]:
        """Return every class by name, in order; imports the modules of the package once."""
        if not self._loaded:
            package = importlib.import_module(self.package)
            for found in pkgutil.iter_modules(package.__path__, f"{self.package}."):
                importlib.import_module(found.name)
            # Set last: a module that asks during its import must find those before it.
            self._loaded = True
        return dict(sorted(self.kinds.items()))

    def get(self, name: str) -> type[T]:
        """Return the class of a name, or raise with similar names.

        `package.module:Class` finds one that is not registered, in the current folder too.
        """
        kinds = self.all()
        if name not in kinds and isinstance(name, str) and ":" in name:
            return self.imported(name)
        if name not in kinds:
            self.fail_unknown(name, kinds)
        return kinds[name]

    def imported(self, path: str) -> type[Any]:
        """Import a class by its path, `package.module:Class`."""
        module, _, attribute = path.partition(":")
        here = str(Path.cwd())
        if here not in sys.path and "" not in sys.path:
            sys.path.insert(0, here)
        try:
            found = getattr(importlib.import_module(module), attribute)
        # A user's module may fail in any way: a script may even call sys.exit.
        except (Exception, SystemExit) as broken:
            fail(
                RuleError, self.argument, f"{path!r} ({type(broken).__name__}: {broken})",
                f"a {self.what} by its path, package.module:Class", "check the path",
            )  # fmt: skip
        if not isinstance(found, type):
            fail(
                RuleError, self.argument, f"{path!r}, which is no class",
                f"a class of a {self.what}", "name the class after the colon",
            )  # fmt: skip
        return found

    def fail_unknown(self, name: Any, known: Any) -> None:
        """Raise for a name that is not known."""
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        fail(
            RuleError, self.argument, repr(name),
            f"a {self.what}; near: {', '.join(near)}" if near else f"one of {', '.join(known)}",
            f"did you mean {near[0]!r}?" if near else self.fix,
        )  # fmt: skip
