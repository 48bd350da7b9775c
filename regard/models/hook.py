"""What a hook is: a way into a family of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from regard.core.errors import RegardError
from regard.models.engine import Engine
from regard.models.removal import Removal
from regard.models.site import Site, Sites


class UnsupportedModelError(RegardError):
    """A model attends in a way that no hook reaches."""


class Held:
    """What is attached at one site: the engines, the outermost first, and one made of all."""

    def __init__(self, site: Site, engines: Sequence[Engine] = ()) -> None:
        self.site, self.engines = site, tuple(engines)
        stages = [stage for engine in engines for stage in engine.stages]
        self.engine = engines[0] if len(engines) == 1 else Engine(stages)

    def by(self, engines: Sequence[Engine]) -> Held:
        """Return the same site, held by other engines."""
        return Held(self.site, engines)


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

    def install(self, model: Any, sites: Sites, engine: Engine, undo: Removal) -> None:
        """Send the calls of these sites through the engine.

        What undoes a change is added to `undo` before the change is made, so that an exception at
        any moment leaves nothing behind.
        """
        ...
