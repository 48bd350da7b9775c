"""What a hook is: a way into a family of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from regard.core.errors import RegardError
from regard.models.engine import Engine
from regard.models.site import Site, Sites

# Undoes an installation exactly; calling it twice does nothing more.
Removal = Callable[[], None]


class UnsupportedModelError(RegardError):
    """A model attends in a way that no hook reaches."""


class Hook(Protocol):
    """A way into models of one family.

    `find` names where a model attends without running it (an empty list: not a model of mine).
    `install` makes every call at these sites go through `engine.run(call)`, with `call.site` set.
    Engines installed on one model stack: the first is outermost.
    """

    name: str

    def find(self, model: Any) -> list[Site]:
        """Name the sites of a model."""
        ...

    def install(self, model: Any, sites: Sites, engine: Engine) -> Removal:
        """Send the calls of these sites through the engine; give what undoes it."""
        ...
