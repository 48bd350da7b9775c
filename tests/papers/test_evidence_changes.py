"""The tables of what the new evidence changed have each row, both checks, and say why."""

import pytest

from regard.papers.checks import checks
from regard.papers.evidence_files import MeasuredClaim
from regard.papers.standing import standings
from tests.scripts import ROOT, script

made = script("scripts/evidence_changes.py")


@pytest.fixture(scope="module")
def now():
    return standings()


@pytest.fixture(scope="module")
def page(now):
    was = made.Before("shown", "output | gradient equal", "", pinned=True, dirty=True)
    return made.page({one.row.key: was for one in now}, now)


def test_every_row_with_a_check_has_a_line_with_both_states(now, page):
    for one in now:
        if one.row.key in checks():
            assert f"| `{one.row.key}` | shown | {one.state} | " in page
    assert "|  |" not in page.partition("| row |")[2]


def test_every_row_of_the_review_has_a_line(now, page):
    states = {one.row.key: one.state for one in now}
    for rows in made.FOUND.values():
        for key, what in rows.items():
            assert f"| `{key}` | {what} | shown | {states[key]} | " in page
    for title, key in made.BUILT:
        assert key in made.FOUND[title]


def test_a_line_says_what_is_asked_now_and_what_was_then(now, page):
    row = next(x for x in page.splitlines() if x.startswith("| `aaren` | "))
    assert "its seed set in the check; on code that no commit held; now " in row
    assert "output \\| gradient equal" in row
    aaren = next(one.evidence for one in now if one.row.key == "aaren")
    for claim in aaren.claims:
        assert claim.says in page
        assert claim.against in page


def test_rows_that_had_no_check_say_so(now):
    text = made.page({}, now)
    assert "| planned | " in text
    assert "| no check | " in text


def test_claims_are_written_with_numbers_and_comparators():
    claim = MeasuredClaim(
        "sentence", "accuracy", "above", "a GRU", "", "every seed", False, False,
        [0.25, 0.5], [0.5, 0.5], [0.5, 0.625], [-0.25, -0.125],
    )  # fmt: skip
    assert made.in_words(claim) == "accuracy: 0.25 to 0.5, above 0.5 to 0.625 (a GRU): **fails**"


def test_a_seed_is_found_in_what_a_check_calls():
    source = (
        "def a():\n    torch.manual_seed(1)\ndef b():\n    a()\n"
        "@check('one')\ndef c():\n    b()\n@check('two', long=True)\ndef d():\n    pass\n"
    )
    assert made.pinned_in(source) == {"one"}


def test_the_page_that_is_committed_has_every_row_that_had_evidence():
    text = (ROOT / "docs" / "evidence-changes.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in ("moh", "gaam", "lightning_attention", "minference"))
    assert "asked then" in text
