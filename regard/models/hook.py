"""The protocol of hooks, each into a family of models."""

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
    """The engines attached at one site, the outermost first, and one engine of all their stages."""

    def __init__(self, site: Site, engines: Sequence[Engine] = ()) -> None:
        self.site, self.engines = site, tuple(engines)
        stages = [stage for engine in engines for stage in engine.stages]
        self.engine = engines[0] if len(engines) == 1 else Engine(stages)

    def by(self, engines: Sequence[Engine]) -> Held:
        """Return the same site with other engines."""
        return Held(self.site, engines)


class Hook(Protocol):
    """A hook into models of one family.

    `find` returns the sites of a model without running it (an empty list for other families).
    `install` makes every call at these sites go through `engine.run(call)`, with `call.site` set.
    Engines installed on one model nest: the first is outermost.
    """

    name: str

    def find(self, model: Any) -> list[Site]:
        """Return the sites of a model."""
        ...

    def install(self, model: Any, sites: Sites, engine: Engine, undo: Removal) -> None:
        """Run the calls of these sites through the engine.

        Each change adds its undo step to `undo` before it is made, so that an exception at any
        moment leaves nothing behind.
        """
        ...
