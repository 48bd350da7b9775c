"""The catalogue holds every paper once, and answers wrong names with near ones."""

import dataclasses

import pytest

from regard.core.errors import RegardError
from regard.papers.catalogue import Row, row, rows


def test_every_paper_is_there_once():
    keys = [row.key for row in rows()]
    assert len(keys) == len(set(keys)) == 390


def test_a_row_is_for_reading_exactly_if_it_says_why_nothing_is_built():
    for one in rows():
        assert one.reading == (one.why_no is not None) == (one.kind == "reading")
        assert one.reading == (one.check is None) == (one.how is None), one.key
    assert sum(one.reading for one in rows()) == 59


def test_a_row_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        row("moh").key = "other"


def test_a_row_gives_back_every_field():
    assert Row(**row("moh").asdict()) == row("moh")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("mho", "moh"), ("MoH", "moh"), ("ring", "ring_attention"), ("flash_bias", "flashbias")],
)
def test_an_unknown_key_names_near_ones(wrong, near):
    with pytest.raises(RegardError, match=rf"'{wrong}'.*near:.*\b{near}\b"):
        row(wrong)


@pytest.mark.parametrize("name", ["kind", "family"])
def test_filters_choose_and_refuse(name):
    value = getattr(row("moh"), name)
    assert row("moh") in rows(**{name: value})
    assert all(getattr(one, name) == value for one in rows(**{name: value}))
    with pytest.raises(RegardError, match=f"`{name}`: got 'nonsense'"):
        rows(**{name: "nonsense"})
