"""Every control has a page of its own, which says what the control does now."""

from regard import controls
from tests.scripts import ROOT, script


def test_the_pages_of_controls_are_in_step() -> None:
    wanted = script("scripts/controls_page.py").pages()
    names = {kind.name for kind in controls.known().values()}
    assert {x.stem for x in wanted} == names | {"index"}
    there = {x.name for x in (ROOT / "docs" / "controls").glob("*.md")}
    assert {x.name for x in wanted} == there
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, path.name
