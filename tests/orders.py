"""Random orders of tests that a seed repeats."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar


class Test(Protocol):
    """What stands in a file."""

    @property
    def path(self) -> Path: ...


Item = TypeVar("Item", bound=Test)


def in_order(items: Sequence[Item], seed: int) -> list[Item]:
    """Shuffle files, and the tests of each."""
    by_file: dict[Path, list[Item]] = {}
    for item in items:
        by_file.setdefault(item.path, []).append(item)
    draw, files = random.Random(seed), sorted(by_file)
    draw.shuffle(files)
    return [item for file in files for item in draw.sample(by_file[file], len(by_file[file]))]
