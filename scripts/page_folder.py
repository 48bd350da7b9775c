"""Write a folder of generated pages, and take away those that are no longer wanted."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, pages: dict[Path, str]) -> None:
    folder.mkdir(exist_ok=True)
    for path in set(folder.glob("*.md")) - set(pages):
        path.unlink()
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
