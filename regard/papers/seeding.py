"""Randomness of a check: all of it comes from the seed that the runner sets."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import sys
from collections.abc import Iterator
from unittest import mock

import numpy
import torch

# Seeds that `seed()` returns are at least this large, so that a smaller one was not drawn here.
SMALLEST = 2**30
# Modules that draw data or random controls: a small seed in one of them was pinned by the check.
DRAWS_DATA = (
    *("regard.papers.checks", "regard.papers.shared", "regard.tasks.base", "regard.tasks.written"),
    "regard.tasks.typeset",
    *("regard.probes", "regard.bench"),
)
# What chance gives is drawn with a seed of the library's own: a user gets it too.
OF_THE_LIBRARY = ("regard.probes.chance",)
_current = 0
_seeds = random.Random(0)


def begin(seed: int) -> None:
    """Seed torch, numpy and random with `seed`; what a check draws follows from it alone."""
    global _current, _seeds
    _current, _seeds = seed, random.Random(f"seeds of {seed}")
    _seed_everything(seed)


def restart(name: str = "") -> None:
    """Go back to the beginning of a stream of the runner's seed, so that two models start alike.

    Different names are different streams. The stream depends on the seed and the name alone.

    >>> begin(3)
    >>> restart("nets"); first = torch.rand(2)
    >>> restart("nets"); torch.equal(torch.rand(2), first)
    True
    """
    _seed_everything(_named(name))


def seed() -> int:
    """Return the next seed, for what takes an integer; no two calls of a run return the same."""
    return _seeds.randrange(SMALLEST, 2**31)


def seeds() -> Iterator[int]:
    """Return an endless row of seeds: one for each batch to train on."""
    return itertools.count(seed())


def generator(name: str = "") -> torch.Generator:
    """Return a generator of its own stream; of the same one for the same `name`, where given."""
    return torch.Generator().manual_seed(_named(name) if name else seed())


def _named(name: str) -> int:
    """Derive a seed from the runner's and a name."""
    said = hashlib.sha256(f"{_current}/{name}".encode()).digest()
    return int.from_bytes(said[:4], "big")


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Yield a list that fills with every seed that did not come from the runner while code runs.

    Each is written `module: seed`. A seed counts as the runner's when it is at least `SMALLEST`
    or set by this module.
    """
    pinned: list[str] = []

    def note(given: object) -> None:
        frame = sys._getframe(2)
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and isinstance(given, int) and given < SMALLEST:
            said = f"{module}: {given}"
            drawn = module.startswith(DRAWS_DATA) and module not in OF_THE_LIBRARY
            if drawn and said not in pinned:
                pinned.append(said)

    class Watched(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            note(seed)
            return super().manual_seed(seed)

    def manual_seed(seed: int, true=torch.manual_seed) -> torch.Generator:  # type: ignore[no-untyped-def]
        note(seed)
        made: torch.Generator = true(seed)
        return made

    with (
        mock.patch.object(torch, "Generator", Watched),
        mock.patch.object(torch, "manual_seed", manual_seed),
    ):
        yield pinned
