"""Search over the catalogue: bm25 over the words of a row, and over words that are related to them.

`search.js` is the same in a browser; a test holds that both find the same. Where the sentence
encoder of the `demo` extra is installed, what it thinks is added.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from regard.core.errors import RuleError, fail
from regard.papers.catalogue import Row, row, rows
from regard.papers.encoded import nearness
from regard.papers.related import related
from regard.papers.synonyms import STOP, plain, stem, terms

# How much a word counts by where it stands. `how` and `check` are long and full of details that
# many rows share: they find nothing better. `asked` are questions that people who do not know the
# paper might ask (`asked.txt`). Chosen on the sets of questions called TUNED and OTHER_WORDS.
WEIGHTS = {"name": 1.0, "title": 2.0, "family": 1.0, "what": 1.0, "asked": 0.5}
# bm25: how soon a repeated word stops to count, and how much long rows are held back.
SATURATION, LENGTH = 1.2, 0.75
# What a title typed in is worth: more than any sum of its words.
TITLE = 100.0


@dataclass(frozen=True)
class Hit:
    """A row that was found, with its `score` (higher is better) and the words it shares."""

    row: Row
    score: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """What every stem is worth in every row (`worth[stem][row]`), and titles as plain words."""

    worth: Mapping[str, Mapping[int, float]]
    titles: tuple[str, ...]
    counts: tuple[Counter[str], ...]


@functools.cache
def index() -> Index:
    """Count the stems of every row, and weigh them by how rare they are."""
    counts = tuple(map(_counted, rows()))
    sizes = [sum(count.values()) for count in counts]
    mean = sum(sizes) / len(sizes)
    holders = Counter(one for count in counts for one in count)
    worth: dict[str, dict[int, float]] = {one: {} for one in holders}
    for i, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        held = SATURATION * (1 - LENGTH + LENGTH * size / mean)
        for one, many in count.items():
            rare = math.log(1 + (len(counts) - holders[one] + 0.5) / (holders[one] + 0.5))
            worth[one][i] = rare * many * (1 + SATURATION) / (many + held)
    return Index(worth, tuple(" ".join(_words(one.title)) for one in rows()), counts)


@functools.cache
def asked() -> dict[str, str]:
    """Return what people might ask who look for a paper without its words, by row.

    >>> "miga" in asked()
    True
    """
    lines = asked_text().splitlines()
    return {key: text for key, _, text in (line.partition(": ") for line in lines)}


def asked_text() -> str:
    """Return these questions as they are on the disk, for the search in a browser."""
    return files("regard.papers").joinpath("asked.txt").read_text(encoding="utf-8")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", plain(text))


def _counted(one: Row) -> Counter[str]:
    parts = {
        "name": one.key.replace("_", " "), "title": one.title, "family": one.family,
        "what": one.what, "asked": asked().get(one.key, ""),
    }  # fmt: skip
    count: Counter[str] = Counter()
    for name, text in parts.items():
        for word in _words(text):
            if word not in STOP and (len(word) > 1 or word.isdigit()):
                count[stem(word)] += WEIGHTS[name]
    return count


def search(question: str, limit: int = 10) -> list[Hit]:
    """Find the rows that answer `question`, best first.

    >>> [hit.row.key for hit in search("share key value heads between layers", limit=1)]
    ['mlkv']
    """
    wanted = terms(question)
    if not wanted:
        fail(
            RuleError,
            "question",
            repr(question),
            "at least one word",
            'ask in words, such as "share kv across layers"',
        )
    here = index()
    scores: Counter[int] = Counter()
    met: Counter[int] = Counter()
    words: dict[int, list[str]] = {}
    asked = 0
    for word in wanted:
        known = {one: by for one, by in near(word).items() if one in here.worth}
        asked += bool(known)
        best: dict[int, tuple[float, float]] = {}
        for one, by in known.items():
            for i, worth in here.worth[one].items():
                best[i] = max(best.get(i, (0.0, 0.0)), (by * worth, by))
        for i, (worth, by) in best.items():
            scores[i] += worth
            met[i] += by  # type: ignore[assignment]
            words.setdefault(i, []).append(word)
    # bm25 adds up; a row that answers more of the question should beat one rare word.
    weighed = {i: score * math.sqrt(met[i] / asked) for i, score in scores.items()}
    seen = nearness(question)
    if seen is not None and weighed:
        largest = max(weighed.values())
        weighed = {
            i: weighed.get(i, 0.0) + largest * max(float(x), 0.0) for i, x in enumerate(seen)
        }
    phrase = " ".join(_words(question))
    hits = []
    for i, one in enumerate(rows()):
        score = weighed.get(i, 0.0)
        # A title is found by its common words as well.
        score += TITLE * (phrase == here.titles[i]) if len(phrase) > 1 else 0.0
        if score > 0:
            hits.append(Hit(one, score, tuple(words.get(i, ()))))
    return sorted(hits, key=lambda hit: (-hit.score, hit.row.key))[:limit]


def near(word: str) -> dict[str, float]:
    """Return the stems that answer a word: its own, and those of related words for less.

    >>> near("k7x")
    {'k7x': 1.0}
    """
    return {**related(word), stem(word): 1.0}


def like(key: str, limit: int = 10) -> list[Hit]:
    """Find the papers that share the rarest words with the paper `key`, closest first.

    >>> "mae_attentive_experts" in [hit.row.key for hit in like("moh", limit=3)]
    True
    """
    everything = rows()
    here = everything.index(row(key))
    vectors = _vectors()
    scored = []
    for i, vector in enumerate(vectors):
        products = {t: w * vector[t] for t, w in vectors[here].items() if t in vector}
        if i != here and products:
            best = sorted(products, key=products.__getitem__, reverse=True)[:6]
            scored.append(Hit(everything[i], sum(products.values()), tuple(best)))
    return sorted(scored, key=lambda hit: -hit.score)[:limit]


@functools.cache
def _vectors() -> list[dict[str, float]]:
    """Unit vectors of weighted words, one for each row: log count times inverse frequency."""
    counts = index().counts
    holders = Counter(one for count in counts for one in count)
    vectors = []
    for count in counts:
        raw = {
            one: math.log1p(many) * math.log(len(counts) / holders[one])
            for one, many in count.items()
            if holders[one] > 1 and len(one) > 2 and not one.isdigit()
        }
        length = math.sqrt(sum(w * w for w in raw.values())) or 1.0
        vectors.append({one: w / length for one, w in raw.items()})
    return vectors
