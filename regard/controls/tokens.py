"""Sets of tokens by meaning: words, parts of a prompt, images, regions; and their algebra."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.prompt import NotInPromptError, Prompt, word_pattern
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail, shape_of
from regard.core.value import Value, value

SIDES = ("keys", "queries")


class TokenSet(Value):
    """A set of tokens, as queries or as keys; `|`, `&` and `~` combine sets.

    A set that is known before the call writes `positions`; one that is found in the call itself
    writes `mask`.
    """

    # What its positions count: "all" tokens of the sequence, those of the "text", of the "image".
    modality: ClassVar[str] = "all"

    def __or__(self, other: TokenSet) -> TokenSet:
        return AnyOf((self, _need(other)))

    def __and__(self, other: TokenSet) -> TokenSet:
        return AllOf((self, _need(other)))

    def __invert__(self) -> TokenSet:
        return self.part if isinstance(self, NotIn) else NotIn(self)

    @abstractmethod
    def positions(self, at: EditContext, side: str) -> Tensor:
        """Return which positions belong to it, bool [b or 1, positions]; later ones do not."""

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Return which keys [b or 1, h or 1, m] or queries [b or 1, 1, n] belong to it."""
        chosen = self.positions(at, side)
        place = at.key_positions if side == "keys" else at.query_positions[:, None]
        if self.modality != "all" and at.site is not None and at.site.kind != "self":
            # Text and image are counted from their own first token.
            own = at.tokens_at(side, self.modality)
            place = torch.where(place < own.stop, place - own.start, -1)
        return expand_to_heads(looked_up(chosen.to(at.device), place, at.call.b), at)

    @property
    def label(self) -> str:
        """How a receipt names it."""
        return str(self)


def _need(x: object) -> TokenSet:
    if not isinstance(x, TokenSet):
        fail(RuleError, "which", shape_of(x), "a set of tokens", 'pass Words("Paris"), say')
    return x


def looked_up(chosen: Tensor, place: Tensor, b: int) -> Tensor:
    """Read bool [b or 1, positions] at places [b or 1, g or 1, m]; False beyond its ends.

    Rows of beams follow one another, so a row of the set may serve several.
    """
    if chosen.shape[0] not in (1, b):
        if b % chosen.shape[0]:
            fail(
                ValueRangeError, "which", f"tokens of {chosen.shape[0]} rows", f"1 or {b} rows",
                "name tokens for each row of the batch",
            )  # fmt: skip
        chosen = chosen.repeat_interleave(b // chosen.shape[0], 0)
    size = chosen.shape[1]
    inside = (place >= 0) & (place < size)
    rows = max(chosen.shape[0], place.shape[0])
    index = place.clamp(0, max(size - 1, 0)).expand(rows, -1, -1)
    table = chosen[:, None].expand(rows, index.shape[1], size)
    return (table.gather(2, index) if size else torch.zeros_like(index, dtype=torch.bool)) & inside


def expand_to_heads(mask: Tensor, at: EditContext) -> Tensor:
    """Repeat what was found for key heads [b, g, m] for the query heads that read them."""
    many = mask.shape[1]
    return mask if many in (1, at.call.h) else mask.repeat_interleave(at.call.h // many, 1)


@value
class AllTokens(TokenSet):
    """Every token.

    >>> AllTokens() & ~TokenPositions((0,))
    AllOf((AllTokens(), NotIn(TokenPositions((0,)))))
    """

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Return all positions that there are."""
        place = at.key_positions if side == "keys" else at.query_positions
        return torch.ones(1, int(place.max()) + 1 if place.numel() else 0, dtype=torch.bool)

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Return all that hold a token."""
        many = at.call.n if side == "queries" else at.call.m
        whole = torch.ones(1, 1, many, dtype=torch.bool, device=at.device)
        return expand_to_heads(at.key_positions >= 0, at) if side == "keys" else whole


@value
class AnyOf(TokenSet):
    """Tokens of any of some sets."""

    parts: tuple[TokenSet, ...]

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Not asked: the sets are asked one by one."""
        raise NotImplementedError

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Unite the sets."""
        found = self.parts[0].mask(at, side)
        for part in self.parts[1:]:
            found = found | part.mask(at, side)
        return found


@value
class AllOf(TokenSet):
    """Tokens that are in all of some sets."""

    parts: tuple[TokenSet, ...]

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Not asked: the sets are asked one by one."""
        raise NotImplementedError

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Intersect the sets."""
        found = self.parts[0].mask(at, side)
        for part in self.parts[1:]:
            found = found & part.mask(at, side)
        return found


@value
class NotIn(TokenSet):
    """Tokens that are not in a set."""

    part: TokenSet

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Not asked: the set is asked."""
        raise NotImplementedError

    def mask(self, at: EditContext, side: str = "keys") -> Tensor:
        """Return all that hold a token, and are not in the set."""
        return AllTokens().mask(at, side) & ~self.part.mask(at, side)


@value
class TokenPositions(TokenSet):
    """Tokens by number, from 0, padding counted; negative ones from the end of the prompt.

    >>> TokenPositions(range(3)).numbers
    (0, 1, 2)
    """

    numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        many = (self.numbers,) if isinstance(self.numbers, int) else tuple(self.numbers)
        if not many or any(isinstance(x, bool) or not isinstance(x, int) for x in many):
            fail(
                ValueRangeError, "numbers", shape_of(self.numbers), "one or more whole numbers",
                "pass TokenPositions([3, 4])",
            )  # fmt: skip
        object.__setattr__(self, "numbers", many)

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark the numbers."""
        length = at.prompt.length
        if length is None and min(self.numbers) < 0:
            fail(
                ValueRangeError, "numbers", min(self.numbers), "numbers from 0 on, where the "
                "prompt is not known", "count from the start",
            )  # fmt: skip
        index = [x if x >= 0 else x + (length or 0) for x in self.numbers]
        most = length if length is not None else at.call.m
        if not 0 <= min(index) <= max(index) < most:
            fail(
                ValueRangeError, "numbers", list(self.numbers), f"tokens 0 to {most - 1}",
                "count the tokens of the prompt from 0",
            )  # fmt: skip
        made = torch.zeros(1, max(index) + 1, dtype=torch.bool)
        made[0, index] = True
        return made


@value
class TokenMask(TokenSet):
    """Tokens by a mask, bool [positions] or [b, positions].

    >>> print(TokenMask(torch.tensor([True, False])))
    TokenMask(<bool 1x2>)
    """

    chosen: Tensor

    def __post_init__(self) -> None:
        x = self.chosen
        if not isinstance(x, Tensor) or x.dtype != torch.bool or x.dim() not in (1, 2):
            fail(
                ValueRangeError, "chosen", shape_of(x), "bool [positions] or [b, positions]",
                "compare, do not count: ids == 5",
            )  # fmt: skip
        if not bool(x.any()):
            fail(ValueRangeError, "chosen", "an empty mask", "at least one token", "choose a token")
        object.__setattr__(self, "chosen", x if x.dim() == 2 else x[None])

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Return the mask."""
        return self.chosen


class _FoundInText(TokenSet):
    """A set that is found in the text of the prompt, once for each prompt."""

    modality: ClassVar[str] = "text"

    def find(self, prompt: Prompt) -> Tensor:
        """Return which tokens of the prompt belong to it, bool [b, n]."""
        raise NotImplementedError

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Find it in the prompt, or remember where it was found."""
        found: Tensor | None = at.prompt.memory.get(self)
        if found is None:
            found = at.prompt.memory[self] = self.find(at.prompt)
        return found


@value
class Words(_FoundInText):
    """Every place of a word or a phrase in the prompt; `number` names one place, from 0.

    The word is found as a whole: "cat" is not found in "concatenate".

    >>> Words("Paris") | Words("the Seine")
    AnyOf((Words('Paris'), Words('the Seine')))
    """

    text: str
    number: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            fail(
                RuleError, "text", shape_of(self.text), "a word or a phrase", 'pass Words("Paris")'
            )

    def find(self, prompt: Prompt) -> Tensor:
        """Find the word in each row."""
        spans = []
        for row, (text, _) in enumerate(prompt.rows):
            found = prompt.spans_of(row, word_pattern(self.text.strip()))
            at = self.number
            if not found or (at is not None and not -len(found) <= at < len(found)):
                shown = text if len(text) <= 80 else text[:80] + "..."
                times = "" if at is None else f" number {at}, of {len(found)} places"
                fail(
                    NotInPromptError, "which", repr(self.text) + times,
                    f"words of the prompt: {shown!r}", "name a word as it is written there",
                )  # fmt: skip
            spans.append(found if at is None else [found[at]])
        return prompt.covering(spans)


@value
class TextBetween(_FoundInText):
    """The text between two markers, these left out: `TextBetween("<data>", "</data>")`.

    >>> TextBetween("Context:", "Question:").first
    'Context:'
    """

    first: str
    last: str

    def find(self, prompt: Prompt) -> Tensor:
        """Find the markers in each row."""
        spans = []
        for row, (text, _) in enumerate(prompt.rows):
            pattern = re.escape(self.first) + "(?s:.*?)" + re.escape(self.last)
            found = prompt.spans_of(row, pattern)
            if not found:
                fail(
                    NotInPromptError, "which", f"{self.first!r} ... {self.last!r}",
                    f"both markers in the prompt: {text[:80]!r}", "name markers as written there",
                )  # fmt: skip
            a, b = len(self.first), len(self.last)
            spans.append([(start + a, stop - b) for start, stop in found])
        return prompt.covering(spans)


@value
class PromptPart(_FoundInText):
    """Messages of a role of a chat ("system", "user"), or a "document"; `number` names one.

    Found by the messages and documents that `regard.steer` was told.

    >>> PromptPart("document", 2)
    PromptPart('document', 2)
    """

    name: str
    number: int | None = None

    def find(self, prompt: Prompt) -> Tensor:
        """Find the parts in each row."""
        rows = range(len(prompt.rows))
        return prompt.covering([prompt.part_spans(row, self.name, self.number) for row in rows])


@value
class ImageTokens(TokenSet):
    """Tokens that stand for images in a prompt; `number` names one image.

    >>> ImageTokens() & ~TokenPositions((0,))
    AllOf((ImageTokens(), NotIn(TokenPositions((0,)))))
    """

    number: int | None = None

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Mark the tokens of images, by `mm_token_type_ids` or by the id of an image token."""
        images = at.prompt.images
        if images is None or not bool(images.any()):
            fail(
                CapabilityError, "which", "image tokens", "a prompt with an image, to a model whose "
                "config names its image token", "pass what the processor gave, with the image",
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
class Region(TokenSet):
    """A region of a picture: a box (top, left, bottom, right) in shares of its sides, or a mask.

    `mask` is bool or numbers [rows, columns], of any size; a patch belongs to the region where its
    middle does. The grid of the patches is told by the model, or by the prompt.

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
            if not bool(made.any()):  # a small box still has the patch that its middle is in
                y, x = int((top + bottom) / 2 * grid[0]), int((left + right) / 2 * grid[1])
                made[min(y, grid[0] - 1), min(x, grid[1] - 1)] = True
            return made
        assert self.pixels is not None
        high, wide = self.pixels.shape
        y, x = (rows * high).long(), (columns * wide).long()
        made = self.pixels.cpu()[y[:, None], x] > 0
        if not bool(made.any()):
            middle = (self.pixels > 0).nonzero().float().mean(0)
            made[int(middle[0] / high * grid[0]), int(middle[1] / wide * grid[1])] = True
        return made

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Lay the region over the patches."""
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
    """Return rows and columns of so many image tokens, as the model or the prompt tells."""
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
        "a grid that the model tells of",
        "pass regard.steer(..., grid=(rows, columns))",
    )


def token_set(x: Any) -> TokenSet:
    """Read a set of tokens: a set, a word or phrase, numbers of tokens, or a bool mask.

    >>> token_set("Paris"), token_set([0, 1])
    (Words('Paris'), TokenPositions((0, 1)))
    """
    if isinstance(x, TokenSet):
        return x
    if isinstance(x, str):
        return Words(x)
    if isinstance(x, Tensor) and x.dtype == torch.bool:
        return TokenMask(x)
    if isinstance(x, int) and not isinstance(x, bool):
        return TokenPositions((x,))
    if isinstance(x, range | list | tuple) and x:
        if all(isinstance(y, str) for y in x):
            return Words(x[0]) if len(x) == 1 else AnyOf(tuple(Words(y) for y in x))
        if all(isinstance(y, int) and not isinstance(y, bool) for y in x):
            return TokenPositions(tuple(x))
    return fail(
        RuleError,
        "which",
        shape_of(x),
        "a set of tokens: words, numbers of tokens, or a mask",
        'pass which="Paris", or regard.controls.PromptPart("system")',
    )


__all__ = [
    "AllOf", "AllTokens", "AnyOf", "ImageTokens", "NotIn", "PromptPart", "Region", "TextBetween",
    "TokenMask", "TokenPositions", "TokenSet", "Words", "expand_to_heads", "grid_of", "looked_up",
    "token_set",
]  # fmt: skip
