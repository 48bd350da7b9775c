"""The prompt of a model: its tokens, their text, and its parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import RegardError, ValueRangeError, fail

# How many characters of a prompt an error shows.
SHOWN = 60


class NotInPromptError(RegardError, LookupError):
    """A word or a part that is not in the prompt."""


@dataclass(eq=False)
class Prompt:
    """The tokens of a prompt: ids [b, n], which are real [b, n], and which are images [b, n].

    `messages` are those of a chat (role and content), `documents` texts in the prompt; both are
    searched for in order. `grid` is that of the patches of an image. What controls find out about
    a prompt is kept in `memory`, as long as the prompt. `of_encoder` is set where an encoder reads
    it: a decoder has its tokens only as keys of cross-attention.
    """

    ids: Tensor | None = None
    tokenizer: Any = None
    real: Tensor | None = None
    images: Tensor | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    documents: Sequence[str] = ()
    grid: tuple[int, int] | None = None
    of_encoder: bool = False
    memory: dict[Any, Any] = field(default_factory=dict)

    @property
    def length(self) -> int | None:
        """Return the number of tokens, including padding."""
        return None if self.ids is None else self.ids.shape[1]

    @cached_property
    def rows(self) -> list[tuple[str, list[tuple[int, int]]]]:
        """Return the text of each row, and the span of each token in it; padding has no span."""
        if self.ids is None or self.tokenizer is None:
            fail(
                ValueRangeError, "tokenizer", "none", "the tokenizer of the prompt, to find words",
                "pass regard.steer(..., tokenizer=tokenizer), or name tokens: TokenPositions([3])",
            )  # fmt: skip
        found = []
        for b, ids in enumerate(self.ids.tolist()):
            real = [True] * len(ids) if self.real is None else self.real[b].tolist()
            text, spans = read(self.tokenizer, [t for t, r in zip(ids, real, strict=True) if r])
            rest = iter(spans)
            found.append((text, [next(rest) if r else (0, 0) for r in real]))
        return found

    def spans_of(self, row: int, pattern: str, within: tuple[int, int] | None = None) -> list[Any]:
        """Find the spans of a pattern in the text of a row."""
        text = self.rows[row][0]
        start, stop = within or (0, len(text))
        return [m.span() for m in re.compile(pattern).finditer(text, start, stop)]

    def covering(self, spans: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
        """Mark the tokens in spans of the text of each row, bool [b, n]."""
        assert self.ids is not None
        made = torch.zeros(self.ids.shape, dtype=torch.bool)
        for b, own in enumerate(spans):
            for t, (start, stop) in enumerate(self.rows[b][1]):
                made[b, t] = any(start < end and begin < stop for begin, end in own)
        return made.to(self.ids.device)

    def part_spans(self, row: int, name: str, number: int | None) -> list[tuple[int, int]]:
        """Find the spans of the parts with a name: messages of a role, or documents."""
        pairs = [("document", x) for x in self.documents]
        pairs += [(str(m["role"]), str(m["content"])) for m in self.messages]
        text, found = self.rows[row][0], []
        ends = {"document": 0, "": 0}
        for kind, content in pairs:
            at = text.find(content.strip(), ends["document" if kind == "document" else ""])
            if at < 0:
                fail(
                    NotInPromptError, f"the {kind}", repr(_short(content)),
                    f"text of row {row}: {_short(text)!r}",
                    "pass the messages or documents that the prompt was made of, in their order",
                )  # fmt: skip
            ends["document" if kind == "document" else ""] = at + len(content.strip())
            if kind == name:
                found.append((at, at + len(content.strip())))
        if not found or (number is not None and not -len(found) <= number < len(found)):
            have = ", ".join(f"{kind!r}" for kind in dict.fromkeys(kind for kind, _ in pairs))
            fail(
                NotInPromptError, "part", repr(name) + ("" if number is None else f" {number}"),
                f"one of {have}" if have else "messages or documents, to find it by",
                "pass regard.steer(..., messages=[...], documents=[...])",
            )  # fmt: skip
        return found if number is None else [found[number]]


def read(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of tokens, and the span of each in it, without the space before it.

    A token that is part of a character has the span of the whole character.
    """

    def decode(some: Sequence[int]) -> str:
        return str(tokenizer.decode(some, clean_up_tokenization_spaces=False))

    text = decode(ids)
    pieces = [decode([t]) for t in ids]
    if "".join(pieces) == text:
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
    else:
        ends = [0]
        for stop in range(1, len(ids) + 1):
            head = decode(ids[:stop])
            ends.append(max(ends[-1], len(head.rstrip("\ufffd")) if stop < len(ids) else len(text)))
    spans = []
    for start, stop in pairwise(ends):
        later = stop if stop > start else start + 1
        blank = len(text[start:later]) - len(text[start:later].lstrip())
        spans.append((min(start + blank, later - 1), later))
    return text, spans


def word_pattern(word: str) -> str:
    """Return a pattern of a word as a whole: "cat" is not found in "concatenate".

    >>> bool(re.search(word_pattern("cat"), "concatenate"))
    False
    """
    before = r"(?<!\w)" if word[:1].isalnum() else ""
    after = r"(?!\w)" if word[-1:].isalnum() else ""
    return before + re.escape(word) + after


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
