"""Pictures as sequences: handwritten digits by pixels or patches, and paths to trace."""

from __future__ import annotations

import functools
import random as plain_random
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import RuleError, fail, need
from regard.tasks.base import (
    Batch,
    Kind,
    Numbers,
    Task,
    Tokens,
    answers_at_end,
    asked_at_end,
    integers,
    need_integer,
    python_random,
)
from regard.tasks.registry import register
from regard.tasks.typeset import patches_of, with_question

PARTS = ("train", "held out")


@functools.cache
def _images() -> tuple[Tensor, Tensor]:
    """Load all images [1797, 8, 8] from 0 to 1 with their digits, in a fixed random order."""
    data = need("sklearn.datasets", "bench", "has images of digits").load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images).float()[order] / 16, torch.tensor(data.target).long()[order]


@dataclass(frozen=True, kw_only=True)
class _Digits(Task):
    """Digit images of scikit-learn; the last 360 are held out for tests."""

    part: str = "train"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            fail(RuleError, "part", repr(self.part), f"one of {PARTS}", "leave it out to train")

    @property
    def outputs(self) -> Kind:
        return Tokens(10)

    def sequence(self, images: Tensor) -> Tensor:
        """Lay images [b, 8, 8] out as a sequence [b, n, c]."""
        raise NotImplementedError

    def draw(self, size: int, random: torch.Generator) -> Batch:
        images, digits = _images()
        split = len(images) - 360
        low, high = (0, split) if self.part == "train" else (split, len(images))
        which = integers(low, high, (size,), random)
        x = self.sequence(images[which])
        return asked_at_end(x, digits[which])

    def oracle(self, batch: Batch) -> Tensor:
        """Look up the label of the equal image."""
        images, digits = _images()
        known = self.sequence(images).flatten(1)
        return answers_at_end(batch, digits[torch.cdist(batch.x.flatten(1), known).argmin(1)])

    def tests(self) -> dict[str, Task]:
        return {self.name: replace(self, part="held out")}


@register("pixel_digits")
@dataclass(frozen=True, kw_only=True)
class PixelDigits(_Digits):
    """Classify a handwritten digit, pixel by pixel (needs scikit-learn)."""

    patterns = ("cs", "ns")

    @property
    def inputs(self) -> Kind:
        return Numbers(1)

    @property
    def longest(self) -> int:
        return 64

    def sequence(self, images: Tensor) -> Tensor:
        return images.flatten(1)[..., None]


@register("patch_digits")
@dataclass(frozen=True, kw_only=True)
class PatchDigits(_Digits):
    """Classify a handwritten digit in 16 patches and an answer token, as in ViT."""

    patterns = ("ns", "cs")

    @property
    def inputs(self) -> Kind:
        return Numbers(5)

    @property
    def longest(self) -> int:
        return 17

    def sequence(self, images: Tensor) -> Tensor:
        return with_question(patches_of(images, 2))


@register("pathfinder")
@dataclass(frozen=True, kw_only=True)
class Pathfinder(Task):
    """Two winding paths on a grid, and two marked ends: are they the ends of one path?

    Cells are read row by row, then a question token. Paths never touch one another.

    >>> Pathfinder(side=8, steps=5).batch(2).x.shape
    torch.Size([2, 65])
    """

    patterns = ("ns", "cs")
    side: int = 10
    steps: int = 8

    def __post_init__(self) -> None:
        need_integer("side", self.side, 6)
        need_integer("steps", self.steps, 3, self.side)

    @property
    def inputs(self) -> Kind:
        return Tokens(4)  # empty, path, end, the question

    @property
    def outputs(self) -> Kind:
        return Tokens(2)

    @property
    def longest(self) -> int:
        return self.side**2 + 1

    def _path(self, rng: plain_random.Random, taken: set[tuple[int, int]]) -> list[tuple[int, int]]:
        """Walk without touching taken cells, or the path's own except the last."""
        for _ in range(200):
            path = [(rng.randrange(self.side), rng.randrange(self.side))]
            while len(path) <= self.steps:
                r, c = path[-1]
                nexts = [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
                free = [p for p in nexts if self._free(p, taken, path)]
                if not free:
                    break
                path.append(rng.choice(free))
            if len(path) > self.steps and self._free(path[0], taken, []):
                return path
        return []

    def _free(
        self, p: tuple[int, int], taken: set[tuple[int, int]], path: list[tuple[int, int]]
    ) -> bool:
        r, c = p
        if not (0 <= r < self.side and 0 <= c < self.side) or p in path:
            return False
        near = [(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        own = {(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)} & set(path[:-1])
        return not own and not any(q in taken for q in near)

    def draw(self, size: int, random: torch.Generator) -> Batch:
        rng = python_random(random)
        x = torch.zeros(size, self.longest, dtype=torch.long)
        x[:, -1], same = 3, []
        for row in range(size):
            second: list[tuple[int, int]] = []
            while not second:
                first = self._path(rng, set())
                second = self._path(rng, set(first)) if first else []
            for r, c in (*first, *second):
                x[row, r * self.side + c] = 1
            same.append(rng.random() < 0.5)
            for r, c in (first[0], first[-1] if same[row] else second[-1]):
                x[row, r * self.side + c] = 2
        return asked_at_end(x, torch.tensor(same))

    def oracle(self, batch: Batch) -> Tensor:
        cells = batch.x[:, :-1].view(-1, 1, self.side, self.side)
        ends = cells == 2
        first = ends.flatten(1).to(torch.uint8).argmax(1)
        reached = F.one_hot(first, self.side**2).view_as(cells).bool()
        for _ in range(self.steps + 1):  # walk on by one cell, up, down, left or right
            step = reached.float()
            grown = F.max_pool2d(step, (3, 1), 1, (1, 0)) + F.max_pool2d(step, (1, 3), 1, (0, 1))
            reached = (grown > 0) & (cells > 0)
        return answers_at_end(batch, ((reached & ends).flatten(1).sum(1) == 2).long())
