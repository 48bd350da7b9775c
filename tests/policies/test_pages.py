"""The pages of policies say what the policies say."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from tests.scripts import ROOT, script


def test_the_pages_of_policies_are_in_step() -> None:
    wanted = script("scripts/policies_page.py").pages()
    assert {x.name for x in wanted} == {x.name for x in (ROOT / "docs" / "policies").glob("*.md")}
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, path.name
