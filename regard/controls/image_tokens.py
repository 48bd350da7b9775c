"""Sets of image tokens: those of an image in a prompt, and regions of a picture."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.token_sets import KnownTokens
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail, shape_of
from regard.core.value import value


@value
class ImageTokens(KnownTokens):
    """The tokens of images in a prompt; `number` selects one image.

    >>> ~ImageTokens(0)
    NotIn(ImageTokens(0))
    """

    number: int | None = None

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark the tokens of images, by `mm_token_type_ids` or by the id of an image token."""
        images = at.prompt.images
        if images is None or not bool(images.any()):
            fail(
                CapabilityError, "which", "image tokens", "a prompt with an image, for a model "
                "whose config names its image token", "pass what the processor gave for it",
            )  # fmt: skip
        if self.number is None:
            return images
        starts = images & ~torch.nn.functional.pad(images, (1, 0))[:, :-1]
        chosen = images & (starts.cumsum(1) == self.number + 1)
        if not bool(chosen.any(1).all()):
            fail(
                ValueRangeError, "number", self.number, f"0 to {int(starts.sum(1).min()) - 1}",
                "count images from 0",
            )  # fmt: skip
        return chosen


@value
class Region(KnownTokens):
    """A region of a picture: a box (top, left, bottom, right) in shares of its sides, or a mask.

    `mask` is bool or numeric [rows, columns], of any size; a patch belongs to the region if its
    center does. The grid of patches comes from the model or the prompt.

    >>> Region(box=(0, 0, 0.5, 1)).on((2, 3)).int().tolist()
    [[1, 1, 1], [0, 0, 0]]
    """

    box: tuple[float, float, float, float] | None = None
    pixels: Tensor | None = None
    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if (self.box is None) == (self.pixels is None):
            fail(RuleError, "region", "both or none", "a box, or a mask", "pass box=(0, 0, 0.5, 1)")
        if self.box is not None:
            box = tuple(float(x) for x in self.box)
            top, left, bottom, right = box if len(box) == 4 else (1.0, 1.0, 0.0, 0.0)
            if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
                fail(
                    ValueRangeError, "box", str(self.box), "(top, left, bottom, right) from 0 to 1 "
                    "inside the picture, with some area", "pass shares of its sides",
                )  # fmt: skip
            object.__setattr__(self, "box", box)
        if self.pixels is not None:
            x = self.pixels
            if not isinstance(x, Tensor) or x.dim() != 2 or not bool((x > 0).any()):
                fail(
                    ValueRangeError, "pixels", "an empty mask" if isinstance(x, Tensor)
                    and x.dim() == 2 else shape_of(x), "a mask [rows, columns] with something in "
                    "it", "mark the region with ones",
                )  # fmt: skip

    def on(self, grid: tuple[int, int]) -> Tensor:
        """Return the patches of a grid that belong to the region, bool [rows, columns]."""
        rows, columns = ((torch.arange(x) + 0.5) / x for x in grid)
        if self.box is not None:
            top, left, bottom, right = self.box
            down = (rows >= top) & (rows < bottom)
            across = (columns >= left) & (columns < right)
            made = down[:, None] & across
            if not bool(made.any()):  # a small box still has the patch its center is in
                y, x = int((top + bottom) / 2 * grid[0]), int((left + right) / 2 * grid[1])
                made[min(y, grid[0] - 1), min(x, grid[1] - 1)] = True
            return made
        assert self.pixels is not None
        high, wide = self.pixels.shape
        down, across = (rows * high).long(), (columns * wide).long()
        made = self.pixels.cpu()[down[:, None], across] > 0
        if not bool(made.any()):
            middle = (self.pixels > 0).nonzero().float().mean(0)
            made[int(middle[0] / high * grid[0]), int(middle[1] / wide * grid[1])] = True
        return made

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark the patches of the region."""
        images = at.prompt.images
        if images is not None and bool(images.any()):
            made = torch.zeros_like(images)
            for row, own in enumerate(images):
                at_row = own.nonzero().flatten()
                patches = self.on(grid_of(at, len(at_row))).flatten().to(made.device)
                made[row, at_row] = patches
            return made
        own = at.tokens_at(side, "image")
        return self.on(grid_of(at, own.stop - own.start)).flatten()[None]


def grid_of(at: EditContext, tokens: int) -> tuple[int, int]:
    """Return the rows and columns of this many image tokens, from the model or the prompt."""
    given = at.prompt.grid
    if given is not None and given[0] * given[1] == tokens:
        return given
    found = at.forward.grid_of(tokens) or (None if at.site is None else at.site.grid)
    if found is not None and len(found) == 2 and found[0] * found[1] == tokens:
        return int(found[0]), int(found[1])
    side = round(tokens**0.5)
    if at.prompt.images is not None and side * side == tokens:
        return side, side
    return fail(
        CapabilityError,
        "region",
        f"{tokens} image tokens",
        "a grid known from the model",
        "pass regard.steer(..., grid=(rows, columns))",
    )
