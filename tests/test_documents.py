"""The code that documents show runs, in order, as a reader would type it.

A block is code to come, and is not run, when the comment `<!-- planned -->` stands on the line
before it.
"""

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

from regard.papers import checks
from tests.leftovers import put_back

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- planned -->\n)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(document: Path) -> list[str]:
    """Python blocks of a document that should run."""
    text = document.read_text(encoding="utf-8")
    return [code for planned, code in BLOCK.findall(text) if not planned]


DOCUMENTS = [
    path
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    if blocks(path)
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_the_code_of_a_document_runs(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A document shows how the check of a row is written: the row's own must not stand beside it.
    monkeypatch.setattr(checks, "_checks", {})
    with put_back():
        _run(document)


def _run(document: Path) -> None:
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks(document)):
        if ">>>" not in code:
            exec(compile(code, f"{document.name}, block {number}", "exec"), names)
            continue
        example = doctest.DocTestParser().get_doctest(code, names, document.name, None, 0)
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        said: list[str] = []
        runner.run(example, out=said.append, clear_globs=False)
        names.update(example.globs)
        assert not runner.failures, f"{document.name}, block {number}:\n{''.join(said)}"
