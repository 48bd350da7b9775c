"""Full-text search over the catalogue: SQLite FTS5 in memory, ranked by bm25."""

from __future__ import annotations

import functools
import math
import re
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass

from regard.core.errors import RuleError, VersionError, fail
from regard.papers.catalogue import Row, row, rows
from regard.papers.synonyms import STOP, plain, terms

# How much a word counts by where it stands. What the paper is, in our words, is the best text;
# `how` and `check` are long and full of details that many rows share. Chosen on the questions
# called TUNED in the tests, never on those called QUERIES.
WEIGHTS = {"name": 3.0, "title": 4.0, "family": 3.0, "what": 4.0, "how": 0.5, "checked": 0.3}


@dataclass(frozen=True)
class Hit:
    """A row that was found, with its `score` (higher is better) and the words it shares."""

    row: Row
    score: float
    words: tuple[str, ...]


@functools.cache
def _index() -> sqlite3.Connection:
    base = sqlite3.connect(":memory:", check_same_thread=False)
    columns = ", ".join(WEIGHTS)
    try:
        base.execute(
            f"CREATE VIRTUAL TABLE papers USING fts5({columns}, tokenize='porter unicode61')"
        )
    except sqlite3.OperationalError as missing:
        raise VersionError(
            "sqlite3",
            f"SQLite {sqlite3.sqlite_version} without FTS5",
            "SQLite with FTS5",
            "use a Python whose sqlite3 module has it (python.org and conda builds do)",
        ) from missing
    base.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(papers, 'instance')")
    base.executemany(
        f"INSERT INTO papers(rowid, {columns}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                i,
                r.key.replace("_", " "),
                *map(
                    plain,
                    (r.title, r.family, r.what, r.how or "", f"{r.check or ''} {r.headline or ''}"),
                ),
            )
            for i, r in enumerate(rows())
        ],
    )
    return base


def search(question: str, limit: int = 10) -> list[Hit]:
    """Find the rows that answer `question`, best first.

    >>> [hit.row.key for hit in search("share key value heads between layers", limit=3)]
    ['mlkv', 'kv_sharer', 'cross_layer_attention']
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
    base, everything = _index(), rows()
    match = "SELECT rowid FROM papers WHERE papers MATCH ?"
    holders = {word: {i for (i,) in base.execute(match, (f'"{word}"',))} for word in wanted}
    weights = ", ".join(map(str, WEIGHTS.values()))
    # The question as one phrase as well, so that a title typed in is found by its common words.
    phrases = [*wanted, " ".join(re.findall(r"\w+", plain(question)))]
    found = base.execute(
        f"SELECT rowid, bm25(papers, {weights}) FROM papers WHERE papers MATCH ?",
        (" OR ".join(f'"{phrase}"' for phrase in dict.fromkeys(phrases)),),
    )
    hits = []
    for i, rank in found:
        words = tuple(word for word in wanted if i in holders[word])
        # bm25 adds up; a row that answers more of the question should beat one rare word.
        hits.append(Hit(everything[i], -rank * math.sqrt(len(words) / len(wanted)), words))
    return sorted(hits, key=lambda hit: -hit.score)[:limit]


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
    weights = {name: weight for name, weight in WEIGHTS.items() if name != "checked"}
    counts: list[Counter[str]] = [Counter() for _ in rows()]
    seen: defaultdict[str, set[int]] = defaultdict(set)
    for term, i, column in _index().execute("SELECT term, doc, col FROM terms"):
        if column in weights and len(term) > 2 and term not in STOP and not term.isdigit():
            counts[i][term] += weights[column]
            seen[term].add(i)
    vectors = []
    for count in counts:
        raw = {
            t: math.log1p(c) * math.log(len(counts) / len(seen[t]))
            for t, c in count.items()
            if len(seen[t]) > 1
        }
        length = math.sqrt(sum(w * w for w in raw.values())) or 1.0
        vectors.append({t: w / length for t, w in raw.items()})
    return vectors
