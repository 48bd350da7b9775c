"""Sets of tokens in image models: those of the picture, of the prompt, and of a subject."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from regard.controls.context import EditContext
from regard.controls.edit import AttentionEdit
from regard.controls.image_tokens import grid_of
from regard.controls.text_tokens import token_set
from regard.controls.token_sets import KnownTokens, TokenPositions, TokenSet
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of
from regard.core.value import Value, value


class _Whole(KnownTokens):
    """Base of the sets of all tokens of a modality."""

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark all of them."""
        own = at.tokens_at(side, self.modality)
        return torch.ones(1, own.stop - own.start, dtype=torch.bool)


@value
class PictureTokens(_Whole):
    """All tokens of the picture.

    >>> PictureTokens().modality
    'image'
    """

    modality: ClassVar[str] = "image"


@value
class PromptTokens(_Whole):
    """All tokens of the prompt, including padding.

    >>> PromptTokens().modality
    'text'
    """

    modality: ClassVar[str] = "text"


class PictureEdit(AttentionEdit):
    """Base of edits that change only tokens of the picture."""

    def changes(self, at: EditContext) -> Tensor:
        """Return the tokens of the picture."""
        return at.limit & PictureTokens().mask(at, "queries")


@value
class TextPositions(KnownTokens):
    """Tokens of the prompt by number, from 0, whatever precedes them in the model.

    >>> TextPositions((1, 2)).numbers
    (1, 2)
    """

    numbers: tuple[int, ...]
    modality: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        many = (self.numbers,) if isinstance(self.numbers, int) else tuple(self.numbers)
        if not many or any(isinstance(x, bool) or not isinstance(x, int) or x < 0 for x in many):
            fail(
                ValueRangeError, "numbers", shape_of(self.numbers), "one or more whole numbers "
                "from 0", "pass TextPositions([3, 4])",
            )  # fmt: skip
        object.__setattr__(self, "numbers", many)

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark the tokens with these numbers."""
        own = at.tokens_at(side, "text")
        size = own.stop - own.start
        if max(self.numbers) >= size:
            fail(
                ValueRangeError, "numbers", list(self.numbers), f"tokens 0 to {size - 1}",
                "count the tokens of the prompt from 0",
            )  # fmt: skip
        made = torch.zeros(1, size, dtype=torch.bool)
        made[0, list(self.numbers)] = True
        return made


@value
class Widened(KnownTokens):
    """A part of the picture, and all tokens at most `cells` rows and columns away from it.

    >>> from regard.controls.image_tokens import Region
    >>> Widened(Region(box=(0, 0, 0.5, 0.5)), 1).cells
    1
    """

    part: KnownTokens
    cells: int = 1
    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if not isinstance(self.part, KnownTokens) or self.part.modality != "image":
            fail(RuleError, "part", shape_of(self.part), "a region of the picture", "pass a Region")
        if isinstance(self.cells, bool) or not isinstance(self.cells, int) or self.cells < 0:
            fail(ValueRangeError, "cells", shape_of(self.cells), "a whole number from 0", "pass 1")

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Extend the part to its neighbors."""
        chosen = self.part.positions(at, side)
        grid = grid_of(at, chosen.shape[1])
        size = 2 * self.cells + 1
        wide = max_pool2d(chosen.view(-1, 1, *grid).float(), size, 1, self.cells)
        return wide.flatten(1) > 0


@value
class EachPicture(KnownTokens):
    """A region in each of some pictures of the batch, and all of every other.

    >>> from regard.controls.image_tokens import Region
    >>> EachPicture((0,), (Region(box=(0, 0, 0.5, 1)),)).rows
    (0,)
    """

    rows: tuple[int, ...]
    parts: tuple[KnownTokens, ...]
    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        good = all(isinstance(x, KnownTokens) and x.modality == "image" for x in self.parts)
        if not good or len(self.parts) != len(self.rows):
            fail(
                RuleError, "masks", shape_of(self.parts), f"a region for each of {len(self.rows)} "
                "pictures", "pass Region(pixels=mask) or Region(box=(top, left, bottom, right))",
            )  # fmt: skip

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark the regions in their rows."""
        own = at.tokens_at(side, "image")
        size = at.call.b // at.branches
        made = torch.ones(size, own.stop - own.start, dtype=torch.bool)
        for row, part in zip(self.rows, self.parts, strict=True):
            if row < size:
                made[row] = part.positions(at, side)[0].cpu()
        return made


@value
class Subject(Value):
    """A subject of a picture: the words that name it, and its region.

    >>> from regard.controls.image_tokens import Region
    >>> Subject("red fox", Region(box=(0, 0, 1, 0.5))).words
    Phrase('red fox')
    """

    words: TokenSet
    region: TokenSet

    def __post_init__(self) -> None:
        words = token_set(self.words)
        if isinstance(words, TokenPositions):  # of the prompt, wherever it is in the model
            words = TextPositions(words.numbers)
        object.__setattr__(self, "words", words)
        if not isinstance(self.region, TokenSet) or self.region.modality != "image":
            fail(
                RuleError, "region", shape_of(self.region), "a region of the picture",
                "pass Region(box=(top, left, bottom, right)) or Region(pixels=mask)",
            )  # fmt: skip

    @staticmethod
    def many(x: Any, least: int = 1) -> tuple[Subject, ...]:
        """Check subjects: at least `least` of them."""
        found = (x,) if isinstance(x, Subject) else tuple(x) if isinstance(x, list | tuple) else ()
        if len(found) < least or not all(isinstance(one, Subject) for one in found):
            fail(
                RuleError, "subjects", shape_of(x), f"{least} or more subjects",
                'pass [Subject("cat", Region(box=(0, 0, 1, 0.5))), ...]',
            )  # fmt: skip
        return found
