"""Edits of prompts: written weights such as `(word:1.3)`, repeated parts, selected documents."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from regard.controls.base import Edits
from regard.controls.prompt import word_pattern
from regard.controls.score_edits import AddBias
from regard.controls.site_choice import SiteChoice
from regard.controls.text_tokens import Phrase
from regard.core.errors import RuleError, ValueRangeError, fail, shape_of

# The factor of one pair of parentheses; one pair of brackets divides by it.
PAIR = 1.1
_TOKEN = re.compile(
    r"\\[()\[\]\\]|:\s*([+-]?\d+(?:\.\d+)?)\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL
)


class Weighted(NamedTuple):
    """The plain text of a prompt, and its weighted pieces (start, stop, weight) in order."""

    text: str
    pieces: tuple[tuple[int, int, float], ...]

    def control(self, where: Any = None) -> Edits | None:
        """Return a control that multiplies the odds of each piece by its weight; None for none.

        >>> parse_weights("a (red:2.0) fox").control().parts
        (AddBias(Phrase('red', 0), 0.6931471805599453),)
        """
        edits = []
        for start, stop, weight in self.pieces:
            words = self.text[start:stop].strip(" \t\n,.;:!?")
            if not words or weight == 1.0:
                continue
            at = self.text.index(words, start)
            places = re.finditer(word_pattern(words), self.text)
            number = next((i for i, m in enumerate(places) if m.start() == at), None)
            if number is None:
                fail(
                    RuleError, "prompt", repr(self.text[start:stop]), "whole words in parentheses",
                    "put the parentheses around the word: (cats:1.2), not (cat:1.2)s",
                )  # fmt: skip
            edits.append(AddBias(Phrase(words, number), math.log(weight)))
        return Edits(tuple(edits), where=SiteChoice.of(where)) if edits else None


def parse_weights(prompt: str) -> Weighted:
    r"""Parse weights written in a prompt, in the syntax of Stable Diffusion web UIs.

    `(word)` weighs 1.1, `((word))` 1.21, `[word]` 1 / 1.1, `(word:1.3)` 1.3; they nest, and a
    backslash escapes a parenthesis or a bracket.

    >>> parse_weights("a ((red)) fox, [old]")
    Weighted(text='a red fox, old', pieces=((2, 5, 1.21), (11, 14, 0.909)))
    >>> parse_weights(r"a \(red\) fox").text
    'a (red) fox'
    """
    if not isinstance(prompt, str):
        fail(RuleError, "prompt", shape_of(prompt), "a text", "pass 'a (red:1.3) fox'")
    text = ""
    open_at: list[tuple[str, int]] = []
    weights: list[float] = []  # of each character
    for found in _TOKEN.finditer(prompt):
        piece, number = found.group(), found.group(1)
        if piece in ("(", "["):
            open_at.append((piece, len(text)))
            continue
        closes = ")" if number is not None else piece if piece in (")", "]") else ""
        if closes and not (number is not None and (not open_at or open_at[-1][0] != "(")):
            kind, start = open_at.pop() if open_at else ("", 0)
            if kind + closes not in ("()", "[]"):
                _unbalanced(prompt)
            factor = float(number) if number else PAIR if kind == "(" else 1 / PAIR
            if not factor > 0:
                fail(
                    ValueRangeError, "prompt", piece, "a weight above 0",
                    "write (word:0.1), or forbid it: controls.Forbid('word')",
                )  # fmt: skip
            weights[start:] = [w * factor for w in weights[start:]]
            continue
        plain = piece[1:] if piece[0] == "\\" and len(piece) == 2 else piece
        text += plain
        weights += [1.0] * len(plain)
    if open_at:
        _unbalanced(prompt)
    pieces: list[tuple[int, int, float]] = []
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or weights[i] != weights[start]:
            if weights[start] != 1.0:
                pieces.append((start, i, round(weights[start], 3)))
            start = i
    return Weighted(text, tuple(pieces))


def _unbalanced(prompt: str) -> None:
    fail(
        RuleError, "prompt", repr(prompt[:80]), "as many parentheses closed as opened",
        r"close it, or write \( and \) for text",
    )  # fmt: skip


def repeat_part(prompt: str, part: str, times: int = 2, separator: str = "\n") -> str:
    """Return a prompt with a part of it repeated at the end, until it occurs `times` times.

    A model that favors nearby tokens then has a distant instruction near.

    >>> repeat_part("Say yes. Here is a long text.", "Say yes.", separator=" ")
    'Say yes. Here is a long text. Say yes.'
    """
    if part not in prompt or not part:
        fail(RuleError, "part", repr(part), "a part of the prompt", "copy it as it is written")
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        fail(ValueRangeError, "times", shape_of(times), "a whole number from 1", "pass times=2")
    return prompt + (separator + part) * max(times - prompt.count(part), 0)


def crop_documents(
    tokenizer: Any, documents: Sequence[str], scores: Sequence[float], tokens: int
) -> tuple[str, ...]:
    """Return the best-scored documents that fit a number of tokens, in their given order.

    Scores may come from `document_ranking.rerank(...)`. The best document must fit.

    >>> class Letters:
    ...     def __call__(self, text, **settings): return {"input_ids": list(text)}
    >>> crop_documents(Letters(), ["aaaa", "bb", "ccc"], [0.1, 0.5, 0.9], 5)
    ('bb', 'ccc')
    """
    if len(scores) != len(documents) or not documents:
        fail(
            RuleError, "scores", f"{len(scores)} for {len(documents)} documents", "one for each",
            "pass rerank(...).scores",
        )  # fmt: skip
    sizes = [len(tokenizer(x, add_special_tokens=False)["input_ids"]) for x in documents]
    order = sorted(range(len(documents)), key=lambda i: -scores[i])
    if sizes[order[0]] > tokens:
        fail(
            ValueRangeError, "tokens", tokens, f"at least {sizes[order[0]]}, the best document's",
            "allow more tokens, or cut the document",
        )  # fmt: skip
    kept: list[int] = []
    left = tokens
    for i in order:
        if sizes[i] <= left:
            kept.append(i)
            left -= sizes[i]
    return tuple(documents[i] for i in sorted(kept))
