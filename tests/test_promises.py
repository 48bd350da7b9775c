"""Every test and file that the pages of promises name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/promises.md", "docs/what-was-wrong.md")
FILED = [*(str(x) for x in range(1, 32)), *(f"M{x}" for x in range(1, 8))]


@pytest.fixture(scope="module")
def known():
    """Names of tests, and of files with tests."""
    found = set()
    for home in ("tests", "regard/conformance"):
        for path in (ROOT / home).rglob("*.py"):
            found |= set(re.findall(r"^\s*def (test_\w+)", path.read_text("utf-8"), re.M))
            found.add(path.stem)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page, known):
    text = (ROOT / page).read_text("utf-8")
    named = re.findall(r"`(?:[a-z_/]+/)?(test_\w+)(?:\.py)?\.*`", text)
    assert len(named) > 50
    assert set(named) <= known
    for path in re.findall(r"`((?:tests|regard|benchmarks)/[\w/]+\.py)`", text):
        assert (ROOT / path).exists(), path


def test_every_line_that_was_filed_has_its_row():
    text = (ROOT / "docs/what-was-wrong.md").read_text("utf-8")
    rows = re.findall(r"^\| (M?\d+) \|.*\| (.*) \| .*\|$", text, re.M)
    assert sorted(line for line, _ in rows) == sorted(FILED)
    assert all("`test_" in held for _, held in rows)
