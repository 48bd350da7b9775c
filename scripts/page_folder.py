"""Write generated pages: a folder of them, or a table between the marks of one."""

from __future__ import annotations

import sys
from pathlib import Path


def write(folder: Path, pages: dict[Path, str]) -> None:
    """Write the pages of a folder, and remove those that are no longer wanted."""
    folder.mkdir(exist_ok=True)
    for path in set(folder.glob("*.md")) - set(pages):
        path.unlink()
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


def with_table(page: Path, mark: str, table: str) -> str:
    """Return the text of a page with a table between `<!-- mark:begin -->` and `end`."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    head, rest = page.read_text(encoding="utf-8").split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def main(page: Path, wanted: str) -> int:
    """Write a page; with --check, return 1 if it is not what it should be."""
    if "--check" in sys.argv:
        return int(page.read_text(encoding="utf-8") != wanted)
    page.write_text(wanted, encoding="utf-8")
    return 0
