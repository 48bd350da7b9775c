"""Sets of tokens by their text: words, text between markers, parts of a prompt."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.prompt import NotInPromptError, Prompt, word_pattern
from regard.controls.token_sets import AnyOf, KnownTokens, TokenMask, TokenPositions, TokenSet
from regard.core.errors import RuleError, fail, shape_of
from regard.core.value import value


class _FoundInText(KnownTokens):
    """A set that is found in the text of the prompt, once for each prompt."""

    modality: ClassVar[str] = "text"

    def find(self, prompt: Prompt) -> Tensor:
        """Return which tokens of the prompt belong to it, bool [b, n]."""
        raise NotImplementedError

    def positions(self, at: EditContext, side: str) -> Tensor:
        """Find it in the prompt, or return what was found before."""
        found: Tensor | None = at.prompt.memory.get(self)
        if found is None:
            found = at.prompt.memory[self] = self.find(at.prompt)
        return found


@value
class Phrase(_FoundInText):
    """Every occurrence of a word or a phrase in the prompt; `number` selects one, from 0.

    Only whole words match: "cat" is not found in "concatenate".

    >>> Phrase("Paris") | Phrase("the Seine")
    AnyOf((Phrase('Paris'), Phrase('the Seine')))
    """

    text: str
    number: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            fail(
                RuleError, "text", shape_of(self.text), "a word or a phrase", 'pass Phrase("Paris")'
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
    """The text between two markers, without the markers: `TextBetween("<data>", "</data>")`.

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
    """Messages of a role of a chat ("system", "user"), or a "document"; `number` selects one.

    They are found by the messages and documents given to `regard.steer`.

    >>> PromptPart("document", 2)
    PromptPart('document', 2)
    """

    name: str
    number: int | None = None

    def find(self, prompt: Prompt) -> Tensor:
        """Find the parts in each row."""
        rows = range(len(prompt.rows))
        return prompt.covering([prompt.part_spans(row, self.name, self.number) for row in rows])


def token_set(x: Any) -> TokenSet:
    """Convert a set, a word or phrase, numbers of tokens, or a bool mask to a set of tokens.

    >>> token_set("Paris"), token_set([0, 1])
    (Phrase('Paris'), TokenPositions((0, 1)))
    """
    if isinstance(x, TokenSet):
        return x
    if isinstance(x, str):
        return Phrase(x)
    if isinstance(x, Tensor) and x.dtype == torch.bool:
        return TokenMask(x)
    if isinstance(x, int) and not isinstance(x, bool):
        return TokenPositions((x,))
    if isinstance(x, range | list | tuple) and x:
        if all(isinstance(y, str) for y in x):
            words = tuple(Phrase(str(y)) for y in x)
            return words[0] if len(words) == 1 else AnyOf(words)
        if all(isinstance(y, int) and not isinstance(y, bool) for y in x):
            return TokenPositions(tuple(x))
    return fail(
        RuleError,
        "which",
        shape_of(x),
        "a set of tokens: words, numbers of tokens, or a mask",
        'pass which="Paris", or regard.controls.PromptPart("system")',
    )


def read_sets(edit: object, *names: str, optional: tuple[str, ...] = ("queries",)) -> None:
    """Convert fields of a frozen edit to sets of tokens; those in `optional` may be None."""
    for name in (*names, *optional):
        x = getattr(edit, name)
        if x is not None or name in names:
            object.__setattr__(edit, name, token_set(x))
