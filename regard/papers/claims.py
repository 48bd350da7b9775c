"""Claims: what was measured, the sentence of the catalogue that it answers, and against what."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from regard.core.errors import RuleError, ValueRangeError, fail

Number = float | int | str | bool
Relation = Literal["below", "at most", "above", "at least", "within", "equals"]
Over = Literal["every seed", "median"]

# Reasons that many thresholds share. The first is checked: the number must be in the sentence.
CATALOGUE = "the catalogue's number"
FLOAT32 = "rounding of float32 sums in another order"
FLOAT64 = "rounding of float64 sums in another order"

# 0.975 quantiles of Student's t for 1, 2, ... degrees of freedom, then of the normal.
_STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
_NORMAL = 1.96
_WORDS = {
    **{"half": 0.5, "third": 1 / 3, "quarter": 0.25, "tenth": 0.1, "once": 1.0, "one": 1.0},
    **{"twice": 2.0, "double": 2.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0},
}


@dataclass(frozen=True)
class Claim:
    """One number of one seed, and what it has to be.

    `answers` are words of the sentence in the catalogue, `says` what was measured, `against` what
    `comparator` is; `bound` is the comparator with its factor and difference. `because` is the
    reason of every number that the check chose. `over` says whether the claim has to hold in every
    seed or in the median, with an interval that excludes the bound.
    """

    answers: str
    says: str
    measured: Number
    relation: Relation
    against: str
    comparator: Number
    bound: Number
    because: str = ""
    over: Over = "every seed"
    independent: bool = False

    @property
    def margin(self) -> float:
        """By how much the claim holds (negative: by how much it does not)."""
        if self.relation == "equals":
            return 0.0 if self.measured == self.bound else -1.0
        assert not isinstance(self.measured, str)
        assert not isinstance(self.bound, str)
        if self.relation == "within":
            assert not isinstance(self.comparator, str)
            away = abs(float(self.measured) - float(self.comparator))
            return float(self.bound) - away
        sign = 1 if self.relation in ("above", "at least") else -1
        return sign * (float(self.measured) - float(self.bound))

    @property
    def held(self) -> bool:
        """Whether it held for this seed. A NaN holds nothing."""
        strict = self.relation in ("below", "above")
        return self.margin > 0 if strict else self.margin >= 0


@dataclass(frozen=True)
class Measurement:
    """A number that waits for what it is compared with: call one of the methods."""

    answers: str
    says: str
    measured: Number
    over: Over = "every seed"

    def below(
        self,
        comparator: float,
        against: str,
        *,
        times: float = 1,
        plus: float = 0,
        because: str = "",
    ) -> Claim:
        """Claim that it is smaller than `comparator * times + plus`."""
        return self._ordered("below", comparator, against, times, plus, because)

    def at_most(
        self,
        comparator: float,
        against: str,
        *,
        times: float = 1,
        plus: float = 0,
        because: str = "",
    ) -> Claim:
        """Claim that it is not larger than `comparator * times + plus`."""
        return self._ordered("at most", comparator, against, times, plus, because)

    def above(
        self,
        comparator: float,
        against: str,
        *,
        times: float = 1,
        plus: float = 0,
        because: str = "",
    ) -> Claim:
        """Claim that it is larger than `comparator * times + plus`."""
        return self._ordered("above", comparator, against, times, plus, because)

    def at_least(
        self,
        comparator: float,
        against: str,
        *,
        times: float = 1,
        plus: float = 0,
        because: str = "",
    ) -> Claim:
        """Claim that it is not smaller than `comparator * times + plus`."""
        return self._ordered("at least", comparator, against, times, plus, because)

    def within(
        self,
        tolerance: float,
        of: str,
        *,
        value: float = 0,
        because: str,
        independent: bool = False,
    ) -> Claim:
        """Claim that it lies within `tolerance` of `value` (0: it is a difference already).

        `of` names what it should equal; `independent` says that this is an implementation of
        others, or the number that the paper prints.
        """
        _reasoned(because, of)
        return Claim(
            *(self.answers, self.says, _plain(self.measured), "within", of, _plain(value)),
            *(_plain(tolerance), because, self.over, independent),
        )

    def equals(self, value: Number, what: str, *, independent: bool = False) -> Claim:
        """Claim that it is exactly `value`, which is `what`: for counts, words and yes or no."""
        _named(what)
        value = _plain(value)
        return Claim(
            *(self.answers, self.says, _plain(self.measured), "equals", what, value, value),
            over=self.over,
            independent=independent,
        )

    def _ordered(
        self,
        relation: Relation,
        comparator: float,
        against: str,
        times: float,
        plus: float,
        because: str,
    ) -> Claim:
        if (times, plus) != (1, 0):
            _reasoned(because, against)
        _named(against)
        comparator = float(comparator)
        return Claim(
            *(self.answers, self.says, _plain(self.measured), relation, against, comparator),
            *(comparator * times + plus, because, self.over),
        )


def claim(answers: str, says: str, measured: Number, *, over: Over = "every seed") -> Measurement:
    """Start a claim: words of the catalogue's sentence, what was measured, and the number.

    >>> held = claim("grows linearly", "operations at 2n", 18.0).at_most(10.0, "twice those at n",
    ...     times=2, because=CATALOGUE)
    >>> held.margin, held.held
    (2.0, True)
    """
    if not answers.strip() or not says.strip():
        fail(
            RuleError,
            "answers, says",
            repr((answers, says)),
            "words of the catalogue's sentence, and what was measured",
            "quote enough of the sentence to tell it from the others",
        )
    return Measurement(answers, says, measured, over)


def holds(claims: Sequence[Claim]) -> bool:
    """Whether the same claim, measured over several seeds, holds.

    In every seed; or, where the claim said so, in the median, and with a 95% interval about the
    mean margin that excludes none.
    """
    if claims[0].over == "every seed":
        return all(one.held for one in claims)
    margins = [one.margin for one in claims]
    if len(margins) < 2 or not all(map(math.isfinite, margins)):
        return False
    student = _STUDENT[len(margins) - 2] if len(margins) - 2 < len(_STUDENT) else _NORMAL
    half = student * statistics.stdev(margins) / math.sqrt(len(margins))
    return statistics.median(margins) > 0 and statistics.mean(margins) - half > 0


def sentences(check: str) -> tuple[str, ...]:
    """Cut what the catalogue asks for into its sentences.

    >>> sentences("Rows sum to 1; a gate of 0 is exact. (b) It beats chance by 5 points.")
    ('Rows sum to 1', 'a gate of 0 is exact', '(b) It beats chance by 5 points')
    """
    parts, begin, depth = [], 0, 0
    for i, letter in enumerate(check):
        depth += (letter == "(") - (letter == ")")
        ends = letter == ";" or (letter == "." and re.match(r"\s+[A-Z(0-9]|$", check[i + 1 :]))
        if ends and depth <= 0 and re.match(r"\s|$", check[i + 1 :]):
            parts.append(check[begin:i].strip())
            begin = i + 1
    return tuple(part for part in (*parts, check[begin:].strip()) if part)


def sentence_of(words: str, check: str) -> str:
    """Find the one sentence of `check` that has `words` in it."""
    found = [one for one in sentences(check) if _flat(words) in _flat(one)]
    if len(found) != 1:
        fail(
            RuleError,
            "answers",
            repr(words),
            f"words of exactly one sentence of the catalogue, not of {len(found)}",
            "quote the sentence word for word (`regard papers show KEY`)",
        )
    return found[0]


def numbers_in(sentence: str) -> set[float]:
    """List the numbers of a sentence: digits, percents (as shares too), and plain words.

    >>> sorted(numbers_in("a third of 95%, to 1e-5"))
    [1e-05, 0.3333333333333333, 0.95, 95.0]
    """
    found = set()
    for text, percent in re.findall(
        r"(?<![\w.])(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(%?)", sentence.lower()
    ):
        number = float(text.replace(",", ""))
        found |= {number, number / 100} if percent or "point" in sentence else {number}
    words = re.findall(r"[a-z]+", sentence.lower())
    return found | {_WORDS[word] for word in words if word in _WORDS}


def from_the_catalogue(one: Claim, sentence: str) -> bool:
    """Whether a claim that takes its threshold from the catalogue finds it in the sentence."""
    if one.because != CATALOGUE:
        return True
    assert not isinstance(one.bound, str)
    assert not isinstance(one.comparator, str)
    bound, comparator = float(one.bound), float(one.comparator)
    chosen = {bound, comparator, bound - comparator, comparator - bound}
    chosen |= (
        {bound / comparator, comparator / bound, 1 - bound / comparator}
        if (bound and comparator)
        else set()
    )
    given = numbers_in(sentence)
    return any(math.isclose(a, b, rel_tol=1e-6) for a in chosen for b in given if b)


def _plain(number: object) -> Number:
    """Turn a number of torch or numpy into one of Python."""
    item = getattr(number, "item", None)
    plain = item() if callable(item) else number
    if not isinstance(plain, bool | int | float | str):
        fail(ValueRangeError, "measured", type(number).__name__, "a number", "measure one number")
    return plain


def _reasoned(because: str, about: str) -> None:
    if not because.strip():
        fail(
            RuleError,
            "because",
            f"no reason for the threshold beside {about!r}",
            "why this number and no other",
            "say it, or write because=CATALOGUE where the sentence has the number",
        )
    _named(about)


def _named(against: str) -> None:
    if not against.strip():
        fail(
            RuleError,
            "against",
            "no name of the comparator",
            "what the number is compared with",
            "name it: the trained baseline, the tuned peer, the random control",
        )


def _flat(text: str) -> str:
    return " ".join(text.split())
