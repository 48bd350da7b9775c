"""Noisy pictures of colored shapes with captions and questions; what a caption makes up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regard.tasks.colored_shapes import COLORS, SHAPES, ColoredShape, picture

# Three rows and columns of cells; a shape of 5 by 5 stands anywhere in its cell.
GRID, CELL, MOST, NOISE = 3, 8, 5, 1.0
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
NUMBERS = ("none", "one", "two", "three", "four", "five")
# What usually goes together: a color's shape, and the color of what stands beside it.
USUAL_SHAPE = {"red": "square", "green": "ring", "blue": "cross", "yellow": "square"}
USUAL_PARTNER = {"red": "blue", "blue": "red", "green": "yellow", "yellow": "green"}


class SeenShape(NamedTuple):
    """A colored shape in a cell of the picture, counted in reading order."""

    color: str
    shape: str
    cell: int

    @property
    def where(self) -> str:
        """Return its place in words.

        >>> SeenShape("red", "ring", 5).where
        'middle right'
        """
        return f"{ROWS[self.cell // GRID]} {COLUMNS[self.cell % GRID]}"


def draw_scene(generator: torch.Generator, habit: float = 0.0) -> list[SeenShape]:
    """Draw one to five shapes in cells of their own, in reading order.

    With the chance `habit` a shape is the usual one of its color, and a color the usual partner of
    the color before it; otherwise all are as likely.

    >>> len({x.cell for x in draw_scene(torch.Generator().manual_seed(0))})
    5
    """

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    many = 1 + number(MOST)
    cells = torch.randperm(GRID * GRID, generator=generator)[:many].sort().values.tolist()
    made: list[SeenShape] = []
    for cell in cells:
        as_usual = torch.rand(2, generator=generator) < habit
        color = list(COLORS)[number(len(COLORS))]
        if made and as_usual[0]:
            color = USUAL_PARTNER[made[-1].color]
        shape = USUAL_SHAPE[color] if as_usual[1] else list(SHAPES)[number(len(SHAPES))]
        made.append(SeenShape(color, shape, cell))
    return made


def noisy_picture(
    scene: Sequence[SeenShape], generator: torch.Generator, noise: float = NOISE
) -> Tensor:
    """Draw a scene on black with noise of that deviation, [3, 24, 24]; shapes move in their cells.

    >>> noisy_picture([SeenShape("red", "ring", 0)], torch.Generator().manual_seed(0)).shape
    torch.Size([3, 24, 24])
    """
    moved = torch.randint(CELL - 5, (len(scene), 2), generator=generator).tolist()
    placed = [
        ColoredShape(x.color, x.shape, x.cell // GRID * CELL + down, x.cell % GRID * CELL + across)
        for x, (down, across) in zip(scene, moved, strict=True)
    ]
    clean = picture(placed, GRID * CELL)
    return clean + noise * torch.randn(clean.shape, generator=generator)


def caption(scene: Sequence[SeenShape]) -> str:
    """Return the description of a scene.

    >>> caption([SeenShape("red", "ring", 5), SeenShape("blue", "cross", 6)])
    'red ring middle right , blue cross bottom left .'
    """
    return " , ".join(f"{x.color} {x.shape} {x.where}" for x in scene) + " ."


def questions(scene: Sequence[SeenShape], generator: torch.Generator) -> list[tuple[str, str]]:
    """Return a question of each kind with its answer: count, whether one is there, color, place.

    Every second question whether one is there is about one that is not. Color and place are asked
    of a shape that is there only once.

    >>> questions([SeenShape("red", "ring", 5)], torch.Generator().manual_seed(0))[0]
    ('how many ?', 'one .')
    """
    made = [("how many ?", f"{NUMBERS[len(scene)]} .")]
    there = {(x.color, x.shape) for x in scene}
    absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in there]
    truth = bool(torch.rand((), generator=generator) < 0.5)
    among = sorted(there) if truth else absent
    color, shape = among[int(torch.randint(len(among), (), generator=generator))]
    made.append((f"is there {color} {shape} ?", "yes ." if truth else "no ."))
    kinds = [x.shape for x in scene]
    for x in scene:
        if kinds.count(x.shape) == 1:
            made.append((f"color of {x.shape} ?", f"{x.color} ."))
            break
    pairs = [(x.color, x.shape) for x in scene]
    for x in scene:
        if pairs.count((x.color, x.shape)) == 1:
            made.append((f"where is {x.color} {x.shape} ?", f"{x.where} ."))
            break
    return made


def named_objects(text: str) -> list[tuple[str, str]]:
    """Return the objects that a caption names, as (color, shape).

    >>> named_objects("red ring middle right , blue cross bottom left .")
    [('red', 'ring'), ('blue', 'cross')]
    """
    colors, shapes = "|".join(COLORS), "|".join(SHAPES)
    return re.findall(rf"\b({colors}) ({shapes})\b", text)


class Told(NamedTuple):
    """Objects that a caption names, how many of these are not in the picture, and how many it has.

    `missed` are those of the picture that it does not name.
    """

    named: int
    made_up: int
    missed: int
    there: int


def told(text: str, scene: Sequence[SeenShape]) -> Told:
    """Compare a caption with the scene; one named twice must be there twice.

    >>> told("red ring top left , red ring top left .", [SeenShape("red", "ring", 0)])
    Told(named=2, made_up=1, missed=0, there=1)
    """
    left = [(x.color, x.shape) for x in scene]
    named = named_objects(text)
    made_up = 0
    for one in named:
        if one in left:
            left.remove(one)
        else:
            made_up += 1
    return Told(len(named), made_up, len(left), len(scene))


__all__ = [
    "CELL", "GRID", "MOST", "NOISE", "SeenShape", "Told", "caption", "draw_scene", "named_objects",
    "noisy_picture", "questions", "told",
]  # fmt: skip
