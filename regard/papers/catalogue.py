"""The catalogue: one row for each paper, in our own words."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from regard.core.errors import RegardError, fail


class UnknownError(RegardError, KeyError):
    """A name that the catalogue does not hold."""

    __str__ = RegardError.__str__  # KeyError would print the message quoted


@dataclass(frozen=True)
class Row:
    """One paper: what it is (`what`), how it is made (`how`), and what would show that it works.

    `build` is `full` (the whole method), `block` (the part of it that is attention), or `no`
    (a paper for reading, with `why_no`). `certainty` says how sure `how` is of the paper's
    details. `check` is a falsifiable claim at small scale; `headline` is the paper's own number.
    """

    key: str
    title: str
    year: int | None
    kind: str
    family: str
    what: str
    how: str | None
    certainty: str
    check: str | None
    headline: str | None
    build: str
    why_no: str | None

    @property
    def reading(self) -> bool:
        """Whether the row is only for reading and claims nothing that could run."""
        return self.build == "no"

    def asdict(self) -> dict[str, Any]:
        """Every field, as JSON holds it."""
        return asdict(self)


@functools.cache
def _by_key() -> dict[str, Row]:
    text = files("regard.papers").joinpath("catalogue.json").read_text(encoding="utf-8")
    return {fields["key"]: Row(**fields) for fields in json.loads(text)}


def rows(kind: str | None = None, family: str | None = None) -> tuple[Row, ...]:
    """List the rows, or those of one `kind`, or whose family has the words of `family` in it.

    >>> len(rows()), len(rows(kind="kernel")), rows(family="head sharing")[0].key
    (390, 9, 'kdgqa')
    """
    found = tuple(_by_key().values())
    if kind is not None:
        known = sorted({row.kind for row in found})
        if kind not in known:
            unknown("kind", kind, known)
        found = tuple(row for row in found if row.kind == kind)
    if family is not None:
        words = family.lower().split()
        kept = tuple(row for row in found if all(w in row.family.lower() for w in words))
        if not kept:
            unknown("family", family, sorted({row.family for row in found}))
        found = kept
    return found


def row(key: str) -> Row:
    """Give the row of one paper.

    >>> row("moh").title
    'MoH: Multi-Head Attention as Mixture-of-Head Attention'
    >>> row("mho")
    Traceback (most recent call last):
      ...
    regard.papers.catalogue.UnknownError: `key`: got 'mho'; expected a row of the catalogue \
(near: moh, mhe, moba). Fix: find it with `regard papers search`.
    """
    found = _by_key().get(key)
    if found is None:
        near = _near(key, _by_key())
        said = f" (near: {', '.join(near)})" if near else ""
        fail(
            UnknownError,
            "key",
            repr(key),
            f"a row of the catalogue{said}",
            "find it with `regard papers search`",
        )
    return found


def unknown(argument: str, got: str, known: Iterable[str]) -> None:
    """Refuse a name that is not among `known`, and name the nearest ones."""
    known = list(known)
    near = _near(got, known)
    if near:
        expected = f"one of {len(known)} known names (near: {', '.join(near)})"
    else:
        expected = f"a known name, such as {', '.join(known[:12])}"
    fail(UnknownError, argument, repr(got), expected, "use one of those")


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Nearest names first; a known name that contains the given one counts as near."""
    known = list(known)
    inside = [k for k in known if len(name) > 2 and name.lower() in k.lower()]
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return list(dict.fromkeys([*close, *inside]))[:5]
