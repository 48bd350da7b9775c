"""Text as pixels: words in one font on a grid of cells, with the box of each word.

A cell is 16 pixels high and 8 wide and holds one character of DejaVu Sans Mono, the font that
matplotlib ships, so that a page depends on its version alone. Ink is 1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail, need

CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789?"
HIGH, WIDE, POINTS = 16, 8, 13


@functools.cache
def glyphs() -> Tensor:
    """Draw every character: [characters, 16, 8], from 0 (paper) to 1 (ink).

    >>> glyphs().shape, float(glyphs()[0].sum())
    (torch.Size([38, 16, 8]), 0.0)
    """
    drawing, fonts, images = (
        need(f"PIL.{part}", "bench", "draws text") for part in ("ImageDraw", "ImageFont", "Image")
    )
    home = Path(need("matplotlib", "bench", "has a font").get_data_path()) / "fonts" / "ttf"
    font = fonts.truetype(str(home / "DejaVuSansMono.ttf"), POINTS)
    made = torch.zeros(len(CHARACTERS), HIGH, WIDE)
    for place, character in enumerate(CHARACTERS):
        image = images.new("L", (WIDE, HIGH))
        drawing.Draw(image).text((0, 0), character, fill=255, font=font)
        made[place] = torch.tensor(list(image.tobytes())).view(HIGH, WIDE) / 255
    return made


def drawn(cells: Tensor) -> Tensor:
    """Draw characters [b, rows, columns] as images [b, 16 rows, 8 columns].

    >>> drawn(torch.ones(2, 3, 4, dtype=torch.long)).shape
    torch.Size([2, 48, 32])
    """
    return glyphs()[cells].permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)


def read(images: Tensor) -> Tensor:
    """Read images of `drawn`, with noise or without: the nearest character of each cell.

    >>> cells = torch.arange(38).view(1, 2, 19)
    >>> bool((read(drawn(cells)) == cells).all())
    True
    """
    b, high, wide = images.shape
    cells = images.view(b, high // HIGH, HIGH, wide // WIDE, WIDE).transpose(2, 3).flatten(3)
    return torch.cdist(cells, glyphs().flatten(1)[None, None]).argmin(-1)


@dataclass(frozen=True)
class Page:
    """Words on a page: `image` [h, w], and the `boxes` of the words [words, 4].

    A box is left, top, right and bottom in pixels, the last two exclusive.
    """

    words: tuple[str, ...]
    image: Tensor
    boxes: Tensor

    def shares(self, patch: int) -> Tensor:
        """Return how patches divide among the words: see `shares_of`."""
        high, wide = self.image.shape
        return shares_of(self.boxes, (high // patch, wide // patch), patch)


def typeset(
    words: Sequence[str], *, columns: int = 32, rows: int = 8, gap: int = 1, noise: float = 0.0,
    seed: int = 0,
) -> Page:  # fmt: skip
    """Set words line by line, `gap` cells apart; `noise` is the deviation of Gaussian noise.

    >>> page = typeset(["what", "is", "seen"], columns=8, rows=2)
    >>> page.image.shape, page.boxes.tolist()
    (torch.Size([32, 64]), [[0, 0, 32, 16], [40, 0, 56, 16], [0, 16, 32, 32]])
    """
    cells = torch.zeros(1, rows, columns, dtype=torch.long)
    boxes: list[list[int]] = []
    row = column = 0
    for word in words:
        unknown = sorted(set(word) - set(CHARACTERS))
        if unknown or not word or len(word) > columns:
            fail(
                ValueRangeError, "words", repr(word),
                f"1 to {columns} characters of {CHARACTERS.strip()!r}", "use these characters",
            )  # fmt: skip
        if column + len(word) > columns:
            row, column = row + 1, 0
        if row == rows:
            fail(
                ValueRangeError, "words", f"{len(words)} words",
                f"at most {len(boxes)} words, which fill {rows} rows of {columns} cells",
                "pass more rows or columns",
            )  # fmt: skip
        places = torch.tensor([CHARACTERS.index(c) for c in word])
        cells[0, row, column : column + len(word)] = places
        left, top = column * WIDE, row * HIGH
        boxes.append([left, top, left + len(word) * WIDE, top + HIGH])
        column += len(word) + gap
    image = drawn(cells)[0]
    if noise:
        image = image + noise * torch.randn(
            image.shape, generator=torch.Generator().manual_seed(seed)
        )
    return Page(tuple(words), image, torch.tensor(boxes).view(-1, 4))


def shares_of(boxes: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Return the fraction of each patch that belongs to each word, by boxes [w, 4]: [w, patches].

    A patch sums to 1 over words if a box covers any of it, else to 0.

    >>> shares_of(torch.tensor([[0, 0, 24, 16], [24, 0, 40, 16]]), (1, 3), 16).tolist()
    [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]
    """
    rows, columns = grid

    def covered(low: Tensor, high: Tensor, count: int) -> Tensor:
        edges = torch.arange(count) * patch
        return (high[:, None].minimum(edges + patch) - low[:, None].maximum(edges)).clamp_min(0)

    left, top, right, bottom = boxes.unbind(-1)
    area = covered(top, bottom, rows)[:, :, None] * covered(left, right, columns)[:, None]
    area = area.flatten(1).float()
    return area / area.sum(0).clamp_min(1e-9)


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Cut images [b, h, w] into patches [b, n, patch * patch], line by line."""
    b, high, wide = images.shape
    cut = images.view(b, high // patch, patch, wide // patch, patch)
    return cut.transpose(2, 3).flatten(3).flatten(1, 2)


def with_question(patches: Tensor) -> Tensor:
    """Append a question token to patches [b, n, c], marked by a channel: [b, n + 1, c + 1]."""
    x = torch.nn.functional.pad(patches, (0, 1, 0, 1))
    x[:, -1, -1] = 1
    return x
