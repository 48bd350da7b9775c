"""The pages of policies say what the policies say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_of_policies_are_in_step() -> None:
    before = list(sys.path)
    wanted = runpy.run_path(str(ROOT / "scripts" / "policies_page.py"))["pages"]()
    sys.path[:] = before
    assert {x.name for x in wanted} == {x.name for x in (ROOT / "docs" / "policies").glob("*.md")}
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, path.name
