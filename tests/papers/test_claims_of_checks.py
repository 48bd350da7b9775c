"""A claim holds in all seeds or in the median, answers one sentence, and gives its reasons."""

import math

import pytest

from regard.core.errors import RegardError
from regard.papers.catalogue import rows
from regard.papers.claims import (
    CATALOGUE,
    claim,
    from_the_catalogue,
    holds,
    numbers_in,
    sentence_of,
    sentences,
)

ASKED = "Rows sum to 1; a gate of 0 is exact to 1e-5. It beats chance by 5 points, or 95%."


def accuracy(number, over="every seed"):
    return claim("It beats chance", "accuracy", number, over=over).above(0.5, "chance")


def test_every_sentence_of_the_catalogue_can_be_told_from_the_others():
    for row in rows():
        asked = sentences(row.check or "")
        assert len(set(asked)) == len(asked), row.key
        assert all(one in row.check for one in asked), row.key
        # Nothing but stops between them is lost.
        left = row.check or ""
        for one in asked:
            left = left.replace(one, "", 1)
        assert not left.strip(" ;."), row.key


def test_a_quote_is_of_exactly_one_sentence():
    assert sentence_of("beats  chance", ASKED) == "It beats chance by 5 points, or 95%"
    for words in ("nothing of the kind", "s"):
        with pytest.raises(RegardError, match="exactly one sentence"):
            sentence_of(words, ASKED)


@pytest.mark.parametrize(
    ("made", "held", "margin"),
    [
        (claim("a", "b", 1.0).below(2.0, "c"), True, 1.0),
        (claim("a", "b", 2.0).below(2.0, "c"), False, 0.0),
        (claim("a", "b", 2.0).at_most(2.0, "c"), True, 0.0),
        (claim("a", "b", 2.0).above(2.0, "c"), False, 0.0),
        (claim("a", "b", 2.0).at_least(2.0, "c"), True, 0.0),
        (claim("a", "b", 5.0).above(2.0, "c", times=3, because="why"), False, -1.0),
        (claim("a", "b", 2.0).below(2.0, "c", plus=1, because="why"), True, 1.0),
        (claim("a", "b", 0.5).within(0.25, "c", because="why"), False, -0.25),
        (claim("a", "b", 2.25).within(0.5, "c", value=2, because="why"), True, 0.25),
        (claim("a", "b", 3).equals(3, "c"), True, 0.0),
        (claim("a", "b", "x").equals("y", "c"), False, -1.0),
        (claim("a", "b", True).equals(True, "c"), True, 0.0),
    ],
)
def test_a_claim_holds_by_its_margin(made, held, margin):
    assert (made.held, made.margin) == (held, margin)


@pytest.mark.parametrize(
    "made",
    [
        claim("a", "b", math.nan).below(1.0, "c"),
        claim("a", "b", math.nan).above(1.0, "c"),
        claim("a", "b", 1.0).at_most(math.nan, "c"),
        claim("a", "b", math.nan).within(1.0, "c", because="why"),
        claim("a", "b", math.nan).equals(math.nan, "c"),
    ],
)
def test_nothing_holds_for_nan(made):
    assert not made.held


def test_every_seed_has_to_hold_unless_the_median_was_claimed():
    good, bad = [accuracy(x) for x in (0.9, 0.8, 0.9, 0.7)], accuracy(0.4)
    assert holds([*good, good[0]])
    assert not holds([*good, bad])
    median = [accuracy(x, "median") for x in (0.9, 0.8, 0.9, 0.7, 0.49)]
    assert holds(median)
    # A median that is right by chance alone: the interval holds the bound.
    assert not holds([accuracy(x, "median") for x in (0.9, 0.51, 0.52, 0.2, 0.3)])
    assert not holds([accuracy(0.9, "median")])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: claim("a", "b", 1.0).below(2.0, ""),
        lambda: claim("a", "b", 1.0).equals(2.0, " "),
        lambda: claim("a", "b", 1.0).below(2.0, "c", times=2),
        lambda: claim("a", "b", 1.0).below(2.0, "c", plus=2),
        lambda: claim("a", "b", 1.0).within(2.0, "c", because=""),
        lambda: claim("", "b", 1.0),
        lambda: claim("a", " ", 1.0),
        lambda: claim("a", "b", [1.0]).equals(1, "c"),
    ],
)
def test_a_claim_without_a_comparator_or_a_reason_is_refused(wrong):
    with pytest.raises(RegardError):
        wrong()


@pytest.mark.parametrize(
    ("made", "there"),
    [
        (claim("a", "b", 0.0).within(1e-5, "c", because=CATALOGUE), True),
        (claim("a", "b", 0.0).within(1e-4, "c", because=CATALOGUE), False),
        (claim("a", "b", 1.0).above(0.95, "c", because=CATALOGUE), True),
        (claim("a", "b", 1.0).above(0.9, "c", because=CATALOGUE), False),
        (claim("a", "b", 1.0).above(0.3, "c", plus=0.05, because=CATALOGUE), True),
        (claim("a", "b", 1.0).above(0.3, "c", plus=0.04, because=CATALOGUE), False),
        (claim("a", "b", 1.0).above(0.3, "c", plus=0.04, because="why"), True),
    ],
)
def test_a_threshold_of_the_catalogue_is_in_its_sentence(made, there):
    sentence = "exact to 1e-5, and beats chance by 5 points, or 95%"
    assert from_the_catalogue(made, sentence) == there


def test_numbers_are_read_from_words_and_digits():
    assert {1024.0, 0.5, 0.97, 1e-6} <= numbers_in("half of 1,024 in 97%, to 1e-6")
