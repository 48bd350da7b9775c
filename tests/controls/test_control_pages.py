"""Every control has a page of its own, which says what the control does now."""

import importlib.util
from pathlib import Path

from regard import controls

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_of_controls_are_in_step() -> None:
    spec = importlib.util.spec_from_file_location(
        "controls_page", ROOT / "scripts/controls_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    wanted = script.pages()
    names = {kind.name for kind in controls.known().values()}
    assert {x.stem for x in wanted} == names | {"index"}
    there = {x.name for x in (ROOT / "docs" / "controls").glob("*.md")}
    assert {x.name for x in wanted} == there
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, path.name
