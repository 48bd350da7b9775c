"""Pictures of colored shapes, the prompts that describe them, and a detector of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

SIDE, SIZE = 16, 5
COLORS = {
    "red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0),
    "yellow": (1.0, 1.0, -1.0),
}  # fmt: skip
SHAPES = {
    "square": ("#####", "#####", "#####", "#####", "#####"),
    "ring": ("#####", "#...#", "#...#", "#...#", "#####"),
    "cross": ("..#..", "..#..", "#####", "..#..", "..#.."),
}
# The F1 between a template and the pixels of a color from which a shape counts as found.
FOUND = 0.8


class ColoredShape(NamedTuple):
    """A colored shape, and its top left corner."""

    color: str
    shape: str
    top: int = 0
    left: int = 0


def template(shape: str) -> Tensor:
    """Return the pixels of a shape, [5, 5] of 0 and 1.

    >>> int(template("ring").sum())
    16
    """
    return torch.tensor([[float(x == "#") for x in row] for row in SHAPES[shape]])


def describe(shapes: Sequence[tuple[str, str]]) -> str:
    """Return the prompt of some shapes, (color or "a", shape) each.

    >>> describe([("red", "ring"), ("a", "cross")])
    'red ring and a cross'
    """
    return " and ".join(f"{color} {shape}" for color, shape in shapes)


def picture(shapes: Sequence[ColoredShape], side: int = SIDE) -> Tensor:
    """Draw shapes on black, [3, side, side] from -1 to 1.

    >>> picture([ColoredShape("red", "square", 2, 3)])[0].sum().item()
    -206.0
    """
    made = -torch.ones(3, side, side)
    for one in shapes:
        area = made[:, one.top : one.top + SIZE, one.left : one.left + SIZE]
        ink = torch.tensor(COLORS[one.color])[:, None, None]
        area.copy_(torch.where(template(one.shape)[None] > 0, ink, area))
    return made


def draw_shapes(many: int, generator: torch.Generator, side: int = SIDE) -> list[ColoredShape]:
    """Draw shapes of different colors at random places that do not touch.

    >>> len(draw_shapes(3, torch.Generator().manual_seed(0)))
    3
    """

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    names = list(COLORS)
    colors = [names[i] for i in torch.randperm(len(names), generator=generator)[:many].tolist()]
    kinds = list(SHAPES)
    while True:
        corners: list[tuple[int, int]] = []
        for _ in range(50):
            top, left = number(side - SIZE + 1), number(side - SIZE + 1)
            if all(max(abs(top - y), abs(left - x)) > SIZE for y, x in corners):
                corners.append((top, left))
            if len(corners) == many:
                pairs = zip(colors, corners, strict=True)
                return [ColoredShape(color, kinds[number(len(kinds))], *at) for color, at in pairs]


def ink(pictures: Tensor) -> Tensor:
    """Return which pixels of pictures [b, 3, n, m] have each color, [b, colors, n, m] of 0 and 1.

    A pixel takes the nearest of the colors and black.

    >>> ink(picture([ColoredShape("blue", "cross")])[None]).sum((2, 3)).tolist()
    [[0.0, 0.0, 9.0, 0.0]]
    """
    every = torch.tensor([(-1.0, -1.0, -1.0), *COLORS.values()])
    away = (pictures.float()[:, None] - every[None, :, :, None, None]).square().sum(2)
    nearest = away.argmin(1)
    return torch.stack([(nearest == i + 1).float() for i in range(len(COLORS))], 1)


def matches(pictures: Tensor) -> Tensor:
    """Return the best F1 of each shape in each color, [b, colors, shapes].

    >>> matches(picture([ColoredShape("red", "ring")])[None])[0, 0, 1].item()
    1.0
    """
    marks = ink(pictures)
    b, colors, high, wide = marks.shape
    flat = marks.view(b * colors, 1, high, wide)
    kinds = torch.stack([template(x) for x in SHAPES])[:, None]
    shared = conv2d(flat, kinds)
    area = conv2d(flat, torch.ones(1, 1, SIZE, SIZE))
    score = 2 * shared / (area + kinds.sum((1, 2, 3))[None, :, None, None])
    return score.amax((2, 3)).view(b, colors, len(SHAPES))


def found(pictures: Tensor, shapes: Sequence[tuple[str, str]]) -> Tensor:
    """Return which of some shapes are in each picture [b, 3, n, m], bool [b, shapes].

    A color counts for its best shape alone; the color "a" matches any.

    >>> shapes = [("red", "ring"), ("red", "cross"), ("a", "ring")]
    >>> found(picture([ColoredShape("red", "ring")])[None], shapes).tolist()
    [[True, False, True]]
    """
    score = matches(pictures)
    best = (score == score.amax(2, keepdim=True)) & (score >= FOUND)
    colors, kinds = list(COLORS), list(SHAPES)
    return torch.stack([
        best[:, :, kinds.index(shape)].any(1) if color == "a"
        else best[:, colors.index(color), kinds.index(shape)]
        for color, shape in shapes
    ], 1)  # fmt: skip
