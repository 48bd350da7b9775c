"""Words of general English, and the words of the catalogue that mean nearly the same.

The table was made once by `scripts/related_words.py`, from all-MiniLM-L6-v2 (a sentence encoder,
Apache-2.0); nothing but the table is read here. Its first line lists stems of the catalogue; every
other line is a word, and stems by their number in base 36, with a digit behind each: how near it
is, in tenths.
"""

from __future__ import annotations

import functools
from importlib.resources import files

# A related word counts so much of its nearness: less than the word itself, always.
SHARE = 0.65


def text() -> str:
    """Return the table as it is on the disk, for the search in a browser."""
    return files("regard.papers").joinpath("related_words.txt").read_text(encoding="utf-8")


@functools.cache
def _table() -> tuple[list[str], dict[str, str]]:
    first, *lines = text().splitlines()
    pairs = (line.partition(" ") for line in lines)
    return first.split(), {word: near for word, _, near in pairs}


def related(word: str) -> dict[str, float]:
    """Return stems that are related to a word, and how much each counts, below 1.

    >>> related("automobile") != {}, related("zzzz")
    (True, {})
    """
    stems, table = _table()
    return {
        stems[int(one[:-1], 36)]: SHARE * int(one[-1]) / 10 for one in table.get(word, "").split()
    }


__all__ = ["SHARE", "related", "text"]
