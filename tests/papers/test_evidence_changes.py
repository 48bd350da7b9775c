"""The table of what the new evidence changed has each row, and says why."""

from regard.papers.checks import checks
from regard.papers.standing import standings
from tests.scripts import ROOT, script


def test_every_row_with_a_check_has_a_line_with_both_states():
    made = script("scripts/evidence_changes.py")
    now = standings()
    before = {one.row.key: "shown" for one in now}
    text = made.page(before, now)
    for one in now:
        if one.row.key in checks():
            assert f"| `{one.row.key}` | shown | {one.state} | " in text
    assert "|  |" not in text.partition("| row |")[2]


def test_the_page_that_is_committed_has_every_row_that_had_evidence():
    text = (ROOT / "docs" / "evidence-changes.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in ("moh", "gaam", "lightning_attention", "minference"))
